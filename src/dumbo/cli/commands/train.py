"""`dumbo train CONFIG [KEY=VALUE ...]`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("config", type=Path, help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="values that go before those of the file")
    parser.add_argument(
        "--plan", action="store_true", help="print the resolved configuration and plugin order, and stop"
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

    train(options.config, options.overrides, launch)
    return 0
