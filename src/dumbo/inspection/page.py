"""An inspection as a page: one file without scripts, which asks for nothing from anywhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dumbo import __version__, output
from dumbo.errors import RunError
from dumbo.inspection.shown import MASKED, SPECIAL, STRADDLING, TRAINED, ShownRow, Token
from dumbo.inspection.tables import Table, message_table
from dumbo.output.markup import Html, joined, section, table, text
from dumbo.output.numerals import count
from dumbo.output.page import write_text

if TYPE_CHECKING:
    from dumbo.errors import Problem
    from dumbo.inspection.anomalies import Anomaly

_MARK = '<meta name="dumbo-page" content="inspect">'
"""By which a page is known to be one that may be replaced."""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_LEGEND = (
    (TRAINED, "trained"),
    (MASKED, "not trained"),
    (STRADDLING, "not trained: reaches over the edge of what is"),
    (SPECIAL, "special"),
)


def refuse_other_files(file: Path) -> None:
    """Raise unless `file` may be written: it is new, or an earlier page of an inspection.

    Raises:
        RunError: what is in the way.
    """
    if file.suffix not in (".html", ".htm"):
        raise RunError(f"--html {file}: the page is a file that ends in .html\n    write --html {file.stem}.html")
    if not file.parent.is_dir():
        raise RunError(f"--html {file}: there is no folder {file.parent}")
    if file.is_dir():
        raise RunError(f"--html {file}: this is a folder")
    try:
        is_other = file.exists() and _MARK not in file.read_text(encoding="utf-8", errors="replace")[:2000]
    except OSError as error:
        raise RunError(f"--html {file} cannot be read: {error.strerror or error}") from error
    if is_other:
        raise RunError(f"--html {file}: this file is no page of an inspection\n    choose another name, or remove it")


def write_page(
    file: Path, config_file: Path, rows: Sequence[ShownRow], tables: Iterable[Table], anomalies: Sequence[Anomaly]
) -> None:
    """Write the page to `file`.

    Raises:
        RunError: it cannot be written.
    """
    try:
        write_text(file, page_html(str(config_file), rows, tables, anomalies))
    except OSError as error:
        raise RunError(f"--html {file} cannot be written: {error.strerror or error}") from error


def page_html(config_file: str, rows: Sequence[ShownRow], tables: Iterable[Table], anomalies: Sequence[Anomaly]) -> str:
    """The page of the rows that are shown, what all rows add up to, and what is strange."""
    style = (Path(output.__file__).parent / "report.css").read_text(encoding="utf-8")
    style += (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    body = joined(
        [
            _anomaly_section(anomalies),
            section("rows", "Rows", _row_parts(rows)),
            section("sums", "All rows", (part for table in tables for part in _sum_parts(table))),
        ]
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
{_MARK}
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="dumbo {__version__}">
<title>{text(config_file)}: rows as they are trained</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header>
<h1>Rows as they are trained</h1>
<p class="story">What becomes of the rows of <b>{text(config_file)}</b>.</p>
</header>
<main>
{body}
</main>
<footer><p>Written by dumbo {__version__}.</p></footer>
</body>
</html>
"""


def _anomaly_section(anomalies: Sequence[Anomaly]) -> Html:
    if not anomalies:
        return section("strange", "Nothing to look into", [Html('<p class="lead">All rows were looked at.</p>')])
    items = []
    for anomaly in anomalies:
        details = "".join(f"<p>{text(detail)}</p>" for detail in anomaly.details)
        items.append(f"<li><b>{text(anomaly.source)}</b> {text(anomaly.message)}{details}</li>")
    return section("strange", "To look into", [Html(f'<ul class="strange">{joined(items)}</ul>')])


def _row_parts(rows: Sequence[ShownRow]) -> list[Html]:
    keys = "".join(f'<li><b class="{kind}">{text(words)}</b></li>' for kind, words in _LEGEND)
    legend = f'<ul class="legend words">{keys}</ul>' if any(row.tokens for row in rows) else ""
    return [Html(legend), *(_row(row) for row in rows)]


def _row(row: ShownRow) -> Html:
    parts = [f'<h3>{text(row.place)}</h3><p class="note">{text(row.heading)}</p>']
    if row.tokens:
        parts.append(f'<pre class="tokens" dir="auto">{"".join(_spans(row.tokens))}</pre>')
    parts += [_problem(problem) for problem in row.problems]
    parts += [f'<p class="note">Note: {text(remark)}</p>' for remark in row.remarks]
    if row.messages:
        parts.append(_table(message_table(row)))
    return Html(f'<article class="card row">{joined(parts)}</article>')


def _spans(tokens: Sequence[Token]) -> Iterable[str]:
    """A token each; those that go on with a character of the one before share its place."""
    groups: list[list[Token]] = []
    for token in tokens:
        if groups and not token.text:
            groups[-1].append(token)
        else:
            groups.append([token])
    for group in groups:
        first = group[0]
        kinds = f"{first.state} {SPECIAL}" if first.special else first.state
        title = text("\n".join(token.title for token in group))
        yield f'<span class="{kinds}" title="{title}">{text(first.visible, len(first.visible))}</span>'


def _problem(problem: Problem) -> Html:
    hints = f'<p class="note">{text(chr(10).join(problem.hints))}</p>' if problem.hints else ""
    return Html(f'<div class="wrong"><p>{text(problem.message)}</p>{hints}</div>')


def _sum_parts(sums: Table) -> tuple[Html, Html]:
    return Html(f"<h3>{text(sums.title)}</h3>"), _table(sums)


def _table(shown: Table) -> Html:
    cells = [[text(count(cell)) for cell in line] for line in shown.lines]
    header = [name.capitalize() for name in shown.header]
    return table(shown.title, header, cells, shown.numeric())
