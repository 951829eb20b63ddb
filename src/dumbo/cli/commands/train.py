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
        action="store_true",
        help="go on from the last whole checkpoint of the run in trainer.output_dir, or else of the last run",
    )
    parser.add_argument(
        "--from",
        type=Path,
        metavar="RUN",
        dest="where",
        help="with --resume: the run's folder, or one of its checkpoints",
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

    if not options.resume:
        if options.where is not None:
            raise DumboError(f"--from needs --resume: add it to go on with {options.where}")
        if options.allow_change:
            raise DumboError("--allow-change needs --resume: a new run has no checkpoint to differ from")
        return None
    for word in options.overrides:
        if "=" not in word and Path(word).exists():
            raise DumboError(f"--resume takes no value: write --resume --from {word}")
    return ResumeRequest(options.where, tuple(options.allow_change))
