"""`dumbo runs [FOLDER ...] [--json]`: the runs in folders, how they stand and how far they came, newest first."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dumbo.console import Console
    from dumbo.run_state import RunState

_DEFAULT = Path("runs")
_GOES_FIRST = ("size", "duration", "eval loss", "checkpoints", "started (UTC)", "loss")
"""Columns that a narrow terminal goes without, in this order."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "folders", nargs="*", type=Path, metavar="FOLDER", help="a run, or a folder of runs; by default runs/"
    )
    parser.add_argument("--json", action="store_true", help="print everything that is known, for programs")


def run(options: argparse.Namespace) -> int:
    """List the runs."""
    from dumbo.run_state import newest_first, read_state

    folders = options.folders or [_DEFAULT]
    found = _find(folders, named=bool(options.folders))
    states = newest_first(read_state(folder) for folder in found)
    if options.json:
        import json

        print(json.dumps([_facts(state) for state in states], indent=1))
        return 0
    from dumbo.console import Console, printable

    console = Console()
    if not states:
        console.say(f"no runs in {', '.join(map(str, folders))}")
        return 0
    width = _width(console)
    _print_table(states, console, width)
    for state in states:
        if state.error is not None:
            first = (state.error.strip() or "no message").splitlines()[0]
            line = printable(f"{state.folder}: {first}")
            console.say(line if width is None or len(line) <= width else f"{line[: width - 1]}…")
    return 0


def _find(folders: Sequence[Path], *, named: bool) -> list[Path]:
    """The runs in the folders, each once.

    Raises:
        RunError: one of the folders that are named is not there.
    """
    from dumbo.errors import Problem, RunError
    from dumbo.local_paths import near_paths
    from dumbo.run_state import find_runs

    runs: dict[Path, Path] = {}
    for folder in folders:
        if named and not folder.is_dir():
            what = f"{folder} is a file; a run is a folder" if folder.exists() else f"there is no folder '{folder}'"
            raise RunError(str(Problem(what, hints=near_paths(folder, folders=True))))
        for path in find_runs(folder):
            runs.setdefault(path.resolve(), path)
    return list(runs.values())


def _print_table(states: Sequence[RunState], console: Console, width: int | None) -> None:
    """The table, without the columns for which a terminal of that width has no room."""
    rows = [_row(state) for state in states]
    columns = [name for name in rows[0] if any(row[name] for row in rows) or name in ("run", "state")]
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in columns}
    for name in _GOES_FIRST:
        if width is None or sum(widths[column] + 2 for column in columns) <= width:
            break
        columns = [column for column in columns if column != name]
    console.table(columns, [[row[name] for name in columns] for row in rows])


def _row(state: RunState) -> dict[str, str]:
    from dumbo.cli.commands.cache import shown_size
    from dumbo.console import printable
    from dumbo.output.numerals import duration

    steps = "" if state.steps is None else f"{state.steps:,}"
    if state.total_steps is not None:
        steps = f"{steps or '0'}/{state.total_steps:,}"
    checkpoints = ""
    if state.checkpoints:
        checkpoints = f"{len(state.checkpoints)}, last {state.checkpoints[-1]}"
    started = ""
    if state.started is not None:
        from datetime import UTC, datetime

        started = f"{datetime.fromisoformat(state.started).astimezone(UTC):%Y-%m-%d %H:%M}"
    texts = {
        "run": str(state.folder),
        "state": state.words,
        "steps": steps,
        "loss": _shown(state.loss),
        "eval loss": _shown(state.eval_loss),
        "checkpoints": checkpoints,
        "size": shown_size(state.size),
        "started (UTC)": started,
        "duration": "" if state.seconds is None else duration(state.seconds),
    }
    return {name: printable(value) for name, value in texts.items()}


def _facts(state: RunState) -> dict[str, Any]:
    """Everything, as JSON has it: a loss that is no number is null."""
    from dataclasses import asdict

    return {
        "run": str(state.folder),
        "state": state.state,
        "steps": state.steps,
        "total_steps": state.total_steps,
        "loss": state.loss if _is_finite(state.loss) else None,
        "eval_loss": state.eval_loss if _is_finite(state.eval_loss) else None,
        "checkpoints": list(state.checkpoints),
        "bytes": state.size,
        "started": state.started,
        "ended": state.ended,
        "seconds": state.seconds,
        "error": state.error,
        "owner": asdict(state.owner) if state.owner is not None else None,
    }


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _shown(loss: float | None) -> str:
    return "" if loss is None else f"{loss:.4g}"


def _width(console: Console) -> int | None:
    """Columns of the terminal; None where the output goes elsewhere and may be as wide as it is."""
    import shutil

    return shutil.get_terminal_size().columns if console.is_terminal else None
