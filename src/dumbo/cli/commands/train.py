"""`dumbo train CONFIG [KEY=VALUE ...]`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dumbo.checkpoint.resume import ResumeRequest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("config", type=Path, help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="values that go before those of the file")
    parser.add_argument(
        "--plan", action="store_true", help="print the resolved configuration and plugin order, and stop"
    )

    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN",
        help="go on with the run where its last whole checkpoint is; RUN is its folder or one of its checkpoints, "
        "by default the run that the configuration names, or its last one",
    )
    parser.add_argument(
        "--allow-change",
        action="append",
        default=[],
        metavar="KEY",
        help="with --resume: go on although this key has another value than in the checkpoint",
    )


def run(options: argparse.Namespace) -> int:
    """Train, or print the plan."""
    from dumbo.launch import Launch

    launch = Launch.from_environment()
    if options.plan:
        from dumbo.cli.plan import print_plan
        from dumbo.configure import configure

        print_plan(configure(options.config, options.overrides, launch))
        return 0
    from dumbo.pipeline import train

    train(options.config, options.overrides, launch, _request(options))
    return 0


def _request(options: argparse.Namespace) -> ResumeRequest | None:
    from dumbo.checkpoint.resume import ResumeRequest
    from dumbo.errors import DumboError

    if options.resume is None:
        if options.allow_change:
            raise DumboError("--allow-change needs --resume: a new run has no checkpoint to differ from")
        return None
    return ResumeRequest(Path(options.resume) if options.resume else None, tuple(options.allow_change))
