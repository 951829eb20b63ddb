"""Rows of text files: a row for each file, line or paragraph, with its text as `text`."""

from __future__ import annotations

from collections.abc import Iterator

from dumbo.data.records import Row
from dumbo.plugins.polars.data_files import DataFile
from dumbo.plugins.polars.text_files import decode_line, open_text, row_origin

_ENDS = "\r\n"


def read_text(file: DataFile, rows: str | None) -> Iterator[Row]:
    """Yield the rows of `file`, each a `file` (None), `line` or `paragraph`; of nothing but white space comes none.

    A paragraph ends at a line of white space. Lines lose their ends, paragraphs the last one; else texts are as they
    are in the file. Rows are numbered by the line where they begin. Raises `DataError` for what is not text in UTF-8.
    """
    with open_text(file, may_be_empty=True) as stream:
        lines = ((number, decode_line(raw, file, number)) for number, raw in enumerate(stream, 1))
        pieces = {"line": _each_line, "paragraph": _paragraphs}.get(rows or "", _whole)
        for number, text in pieces(lines):
            yield Row({"text": text}, row_origin(file, number))


def _each_line(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    return ((number, line.rstrip(_ENDS)) for number, line in lines if line.strip())


def _paragraphs(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    start = 0
    paragraph: list[str] = []
    for number, line in lines:
        if line.strip():
            start = start if paragraph else number
            paragraph.append(line)
        elif paragraph:
            yield start, "".join(paragraph).rstrip(_ENDS)
            paragraph.clear()
    if paragraph:
        yield start, "".join(paragraph).rstrip(_ENDS)


def _whole(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    text = "".join(line for _, line in lines)
    if text.strip():
        yield 1, text
