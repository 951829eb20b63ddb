"""Rows of CSV and TSV files; every value is the text that the file holds."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from types import MappingProxyType
from typing import BinaryIO

from dumbo.data.records import Row
from dumbo.plugins.polars.data_files import DataFile
from dumbo.plugins.polars.text_files import decode_line, file_error, no_rows, open_text, place_error, row_origin

# The parser's own limit is 128 KiB, which long texts exceed. A limit there must be: behind a quote that is never closed
# the rest of the file is one value.
_LONGEST_VALUE = 1 << 26
_OWN = MappingProxyType({",": "commas", "\t": "tabs"})
_QUOTED = re.compile(r'"[^"]*("|\Z)')


def read_csv(file: DataFile) -> Iterator[Row]:
    """Yield a row per record, numbered by the line where it begins. The first record is the header.

    Raises `DataError` for a header with a name twice or with other signs than commas (of TSV: tabs) between its names,
    a record longer or shorter than it, and quotes out of place.
    """
    csv.field_size_limit(max(_LONGEST_VALUE, csv.field_size_limit()))
    with open_text(file) as stream:
        records = _records(stream, file)
        header = _read_header(records, file)
        empty = True
        for line, record in records:
            empty = False
            if len(record) != len(header):
                message = f"expected {len(header)} values as in the header, got {len(record)}"
                raise place_error(file, line, 0, message, f"the header: {', '.join(header)}")
            yield Row(dict(zip(header, record, strict=True)), row_origin(file, line))
    if empty:
        raise file_error(file, "the file has a header and no rows")


def _read_header(records: Iterator[tuple[int, list[str]]], file: DataFile) -> list[str]:
    line, header = next(records, (0, []))
    if not header:
        raise no_rows(file)
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise place_error(
            file, line, 0, f"the header has the column '{twice}' twice", "the first line names the columns"
        )
    return header


def _records(stream: BinaryIO, file: DataFile) -> Iterator[tuple[int, list[str]]]:
    """The records and the lines where they begin. Blank lines between records are none."""
    reader = csv.reader(_lines(stream, file), strict=True, delimiter="\t" if file.format == "tsv" else ",")
    while True:
        line = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            message = f"not valid {file.format.upper()}: {error}"
            hint = "a value that holds quotes, separators or line breaks is quoted, and quotes in it are doubled"
            if reader.line_num > line:
                message += f" (read up to line {reader.line_num})"
            raise place_error(file, line, 0, message, hint) from error
        if record:
            yield line, record


def _lines(stream: BinaryIO, file: DataFile) -> Iterator[str]:
    """The lines of the file. Raises `DataError` at the first with text where it is separated by another sign."""
    is_header = True
    for number, raw in enumerate(stream, 1):
        line = decode_line(raw, file, number)
        if is_header and line.strip("\r\n"):
            is_header = False
            _refuse_other_separator(line, file, number)
        yield line


def _refuse_other_separator(header: str, file: DataFile, line: int) -> None:
    # What is quoted belongs to a name. A name that holds one of the signs unquoted, in a file of one column, is
    # refused too: it can be quoted, while rows of one text each would come as a surprise later.
    unquoted = _QUOTED.sub("", header)
    others = (("\t", "a tab"), (";", "';'"), (",", "','"))
    own = "\t" if file.format == "tsv" else ","
    for sign, name in others:
        if sign in unquoted and own not in unquoted:
            known = {"\t": "write `format: tsv`", ",": "write `format: csv`"}.get(sign)
            message = f"the file seems to use {name} between values; of {file.format} only {_OWN[own]} are read"
            raise place_error(file, line, 0, message, known or "save it with commas, or as JSONL")
