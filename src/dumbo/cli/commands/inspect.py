"""`dumbo inspect CONFIG [KEY=VALUE ...] [--row N | --bad] [--source S] [--limit N] [--html FILE]`."""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dumbo.configure import Configured
    from dumbo.inspection.looking import Inspection, Sums
    from dumbo.inspection.shown import ShownRow
    from dumbo.inspection.terminal import Screen

ROWS, BAD_ROWS = 3, 20
"""Rows that are shown of every source, and bad rows in all, unless `--limit` says so."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("config", type=Path, help="YAML file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="values that go before those of the file")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--row", type=_whole, metavar="N", help="show the row of this number, as messages name it")
    which.add_argument("--bad", action="store_true", help="show the rows that cannot be used, and why")
    parser.add_argument("--source", metavar="S", help="look at this source alone: its number from 0, path or file name")
    parser.add_argument(
        "--limit", type=_whole, metavar="N", help=f"rows to show of every source ({ROWS}), or bad rows ({BAD_ROWS})"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write what is shown as a page too")


def run(options: argparse.Namespace) -> int:
    """Show rows, then what all of them add up to: 1 where something is strange, else 0."""
    from dumbo.configure import configure
    from dumbo.errors import ConfigError
    from dumbo.inspection.page import refuse_other_files
    from dumbo.launch import Launch

    if options.html is not None:
        refuse_other_files(options.html)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # rows have letters that not every encoding knows
    configured = configure(options.config, options.overrides, Launch.from_environment())
    try:
        return _inspect(configured, options)
    except ConfigError as error:
        raise configured.explain(error) from error


def _inspect(configured: Configured, options: argparse.Namespace) -> int:
    from dumbo.inspection.looking import Inspection
    from dumbo.inspection.page import write_page
    from dumbo.inspection.terminal import Screen

    screen = Screen(sys.stdout)
    inspection = Inspection(configured, options.source, screen.console)
    if options.bad:
        sums = inspection.add_up()
        rows, anomalies = _show_bad(sums, screen, options), sums.bad
    else:
        rows = _show(inspection, screen, options)
        sums = inspection.add_up()
        anomalies = (*sums.bad, *sums.strange)
        screen.sums(sums.tables)
    screen.anomalies(anomalies, "no bad rows" if options.bad else "nothing strange was found")
    if options.html is not None:
        write_page(options.html, configured.source.file, rows, sums.tables, anomalies)
        screen.console.say(f"\n{options.html}")
    return 1 if anomalies else 0


def _show(inspection: Inspection, screen: Screen, options: argparse.Namespace) -> list[ShownRow]:
    """The rows that were asked for, each as soon as it is there."""
    shown: list[ShownRow] = []
    for row in inspection.rows(ROWS if options.limit is None else options.limit, options.row):
        if not shown:
            screen.legend()
        screen.row(row)
        shown.append(row)
    return shown


def _show_bad(sums: Sums, screen: Screen, options: argparse.Namespace) -> list[ShownRow]:
    shown = sums.bad_rows(BAD_ROWS if options.limit is None else options.limit)
    for row in shown:
        screen.row(row)
    if sums.num_bad > len(shown):
        screen.console.say(f"\n... and {sums.num_bad - len(shown):,} more")
    return shown


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number")
    return int(text)
