"""`dumbo report RUN [RUN ...] [--output FILE]`: a run's report written again, or several runs on one page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dumbo.errors import RunError
    from dumbo.output.run_reading import RunRecord


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the folder of a run; several are compared")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the page; by default report.html in the run's folder, or comparison.html beside the first of several",
    )


def run(options: argparse.Namespace) -> int:
    """Write the page and its picture, and print what is in it."""
    from dumbo.errors import RunError

    _check_output(options.output)
    runs = _read(options.runs)
    file = options.output or _default_file(runs)
    picture = file.with_name("loss.png")
    if options.output or len(runs) > 1:
        picture = file.with_suffix(".png")
        _check_picture(file, picture)
    try:
        if len(runs) == 1:
            from dumbo.output.report import write_run_report

            write_run_report(runs[0], file, picture)
        else:
            from dumbo.output.comparison import write_comparison

            write_comparison(runs, file, picture)
    except OSError as error:
        raise RunError(f"{file} cannot be written: {error.strerror or error}") from error
    from dumbo.output.run_text import run_text
    from dumbo.redact import redact_text
    from dumbo.visible import made_visible

    for record in runs:
        print(made_visible(redact_text("\n".join(run_text(record)))))
    print(file)
    return 0


def _default_file(runs: Sequence[RunRecord]) -> Path:
    first = runs[0].folder
    return first / "report.html" if len(runs) == 1 else first.parent / "comparison.html"


def _check_output(file: Path | None) -> None:
    from dumbo.errors import RunError

    if file is None:
        return
    if file.suffix not in (".html", ".htm"):
        raise RunError(
            f"--output {file}: the page is a file that ends in .html\n    write --output {file / 'report.html'}"
        )
    if not file.parent.is_dir():
        raise RunError(f"--output {file}: there is no folder {file.parent}")
    if file.is_dir():
        raise RunError(f"--output {file}: this is a folder")


def _check_picture(file: Path, picture: Path) -> None:
    """Refuse to replace a picture of somebody's; one beside its page is that of an earlier report."""
    from dumbo.errors import RunError

    if picture.exists() and not file.exists():
        message = f"{file}: its picture would be {picture}, and there is such a file, without a page"
        raise RunError(f"{message}\n    name another page with --output, or move that file")


def _read(folders: Sequence[Path]) -> list[RunRecord]:
    """The runs, all of them different and with something logged."""
    from dumbo.errors import RunError
    from dumbo.output.run_reading import read_run
    from dumbo.run_folder import is_run

    seen: dict[Path, Path] = {}
    for folder in folders:
        if not folder.is_dir() or not is_run(folder):
            raise _no_run(folder)
        real = folder.resolve()
        if real in seen:
            same = "" if seen[real] == folder else f" (as {seen[real]} and as {folder})"
            raise RunError(f"{folder} is given twice{same}\n    name each run once")
        seen[real] = folder
    runs = [read_run(folder) for folder in folders]
    for record in runs:
        if not record.metrics:
            file = record.folder / "metrics.jsonl"
            why = "has no metrics in it" if file.exists() else "does not exist"
            raise RunError(f"{record.folder}: nothing was logged ({file} {why})")
    return runs


def _no_run(folder: Path) -> RunError:
    """What is wrong with a folder that holds no run, and which one was perhaps meant."""
    from dumbo.errors import RunError
    from dumbo.run_folder import is_run

    if not folder.exists():
        message = f"{folder}: there is no such folder"
    elif folder.is_file():
        message = f"{folder} is a file; a run is a folder"
    else:
        message = f"{folder} is not the folder of a run: it has no metrics.jsonl"
    near = next((above for above in list(folder.parents)[:2] if above.is_dir() and is_run(above)), None)
    inside = sorted(path for path in folder.iterdir() if path.is_dir() and is_run(path)) if folder.is_dir() else []
    hint = ""
    if near is not None:
        hint = f"\n    write dumbo report {near}"
    elif inside:
        names = [str(path) for path in inside[-3:]]
        hint = f"\n    it holds runs: {', '.join(names)}{' ...' if len(inside) > 3 else ''}"
    return RunError(message + hint)
