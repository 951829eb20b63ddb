"""`dumbo check CONFIG [KEY=VALUE ...] [--rows]`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

ROWS = 100
"""Rows of every source that `--rows` reads."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("config", type=Path, help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="values that go before those of the file")
    parser.add_argument(
        "--rows", action="store_true", help=f"read the first {ROWS} rows of every source too (tokens are not made)"
    )


def run(options: argparse.Namespace) -> int:
    """Check, and say what was checked."""
    from dumbo.configure import configure
    from dumbo.errors import ConfigError
    from dumbo.launch import Launch
    from dumbo.run_folder import refuse_held_folder

    checked = configure(options.config, options.overrides, Launch.from_environment())
    output_dir = checked.config.trainer.output_dir
    if output_dir is not None:
        try:
            refuse_held_folder(Path(output_dir))
        except ConfigError as error:
            raise checked.explain(error) from error
    print(f"{options.config}: the configuration and its {len(checked.plugins.found)} plugins are fine")
    if options.rows:
        from dumbo.data.build import read_sources
        from dumbo.plugin_loader import Services

        checked.plugins.bind(Services(output_dir=Path(), say=print, records=tuple, load_model=_no_model))
        try:
            sources = read_sources(checked.config, checked.plugins, limit=ROWS)
        except ConfigError as error:
            raise checked.explain(error) from error
        for source in sources:
            dropped = f", {len(source.bad_rows)} bad ones dropped" if source.bad_rows else ""
            print(f"  {source.label}: {len(source.records)} rows read{dropped}")
    return 0


def _no_model(name: str) -> NoReturn:
    from dumbo.errors import RunError

    raise RunError(f"'check' loads no model, and a plugin asks for '{name}' while rows are read")
