"""The report of a run: `report.html` and `loss.png`, made from what lies in its folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dumbo.output.curve_section import curve_section
from dumbo.output.fact_sections import (
    chosen_section,
    data_section,
    machine_section,
    parameters_section,
    repeat_section,
    settings_section,
    use_section,
)
from dumbo.output.headline import headline
from dumbo.output.markup import Html, built, joined, section
from dumbo.output.page import page, write_text
from dumbo.output.png import write_png
from dumbo.output.run_reading import RunRecord, read_run
from dumbo.output.sample_section import sample_section

HTML = "report.html"
PNG = "loss.png"

_SECTIONS: tuple[Callable[[RunRecord], Html], ...] = (
    lambda run: curve_section(run) or _no_curves(),
    lambda run: sample_section(run.samples),
    use_section,
    settings_section,
    data_section,
    parameters_section,
    chosen_section,
    machine_section,
    repeat_section,
)


def write_report(folder: Path) -> Path:
    """Write `report.html` and `loss.png` into the run's `folder`; return the page.

    Files that are missing or cut off give a shorter report.

    Raises:
        OSError: the folder cannot be written to.
    """
    return write_run_report(read_run(folder), folder / HTML, folder / PNG)


def write_run_report(run: RunRecord, file: Path, picture: Path) -> Path:
    """Write the page of a run that was read to `file`, and its loss curve to `picture` if there is one."""
    write_text(file, report_html(run))
    write_png([run], [run.name], picture)
    return file


def report_html(run: RunRecord) -> str:
    """The page."""
    body = joined(built(part, run) for part in _SECTIONS)
    return page(f"{run.name}: report of a training run", headline(run, body), [body], "the folder of the run")


def _no_curves() -> Html:
    return section("curves", "Curves", [Html('<p class="card empty">Nothing was logged.</p>')])
