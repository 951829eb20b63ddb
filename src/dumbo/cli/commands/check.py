"""`dumbo check CONFIG [KEY=VALUE ...] [--rows]`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dumbo.configure import Configured
    from dumbo.data.records import Record
    from dumbo.data.sources import Source

ROWS = 100
"""Rows of every source that `--rows` makes tokens of."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("config", type=Path, help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="values that go before those of the file")
    parser.add_argument(
        "--rows",
        action="store_true",
        help=f"load the tokenizer too, and make tokens of the first {ROWS} rows of every source",
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
        try:
            _check_rows(checked)
        except ConfigError as error:
            raise checked.explain(error) from error
    return 0


def _check_rows(checked: Configured) -> None:
    """Make examples of the first rows of every source.

    Raises:
        DumboError: rows that cannot be used, unless the configuration drops them; a tokenizer that cannot be loaded.
    """
    from dumbo.console import Console
    from dumbo.data.source_encoder import SourceEncoder, common_template
    from dumbo.data.sources import read_sources
    from dumbo.inspection.anomalies import find_anomalies, rows
    from dumbo.inspection.limits import known_limit
    from dumbo.inspection.reading import bind_services, refuse_prepared
    from dumbo.inspection.tally import tally_source
    from dumbo.inspection.tokens import load_tokenizer
    from dumbo.output.numerals import count, percent

    config, plugins = checked.config, checked.plugins
    refuse_prepared(config)
    asked: list[bool] = []
    sources: list[Source] = []

    def records() -> Iterator[Record]:
        asked.append(True)
        return (record for source in sources if not source.entry.held_out for record in source.records)

    say = Console().say
    bind_services(plugins, "check", say, records)
    sources += read_sources(config, plugins, limit=ROWS)
    tokenizer = load_tokenizer(config, plugins)
    if asked:
        print(f"  the tokenizer is learned from the first {ROWS} rows of each source: that of the run has other tokens")
    limit = known_limit(config)
    encoders = [SourceEncoder(source, plugins, tokenizer) for source in sources]
    common_template(encoders)
    for source, encoder in zip(sources, encoders, strict=True):
        tally = tally_source(source, encoder, tokenizer, limit=limit)
        source.settle(tally.rows)
        bad = source.bad.count
        dropped = f", {bad} bad row{'s' if bad > 1 else ''} dropped" if bad else ""
        tokens = f"{count(tally.tokens)} tokens, {percent(tally.share)} trained"
        say(f"  {source.label}: {rows(tally.rows)}, {tokens}{dropped}")
        for anomaly in find_anomalies(source, tally, encoder.warnings):
            say(f"  warning: {anomaly}")
