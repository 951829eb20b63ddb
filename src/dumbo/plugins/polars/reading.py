"""From a dataset's options to its rows: find the files of each part, then read each in its format."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dumbo.data.records import Row
from dumbo.data.slices import SplitSlice, empty_slice
from dumbo.errors import ConfigError, Problem, RunError
from dumbo.plugins.polars.column_rows import count_columns, read_columns
from dumbo.plugins.polars.csv_rows import read_csv
from dumbo.plugins.polars.data_files import DataFile, SourceMistake
from dumbo.plugins.polars.json_rows import count_lines, read_json, read_jsonl
from dumbo.plugins.polars.paths import find_files, parts_of
from dumbo.plugins.polars.plain_text import read_text
from dumbo.plugins.polars.text_files import no_rows, reading

if TYPE_CHECKING:
    from dumbo.plugins.polars.plugin import PolarsOptions

# Goes up whenever other rows would be read of the same files with the same options.
_VERSION = 1


@dataclass(frozen=True)
class Part:
    """Some of the rows of some files, one file after the other."""

    rows: SplitSlice
    files: Sequence[DataFile]


def read_rows(options: PolarsOptions) -> Iterator[Row]:
    """Yield the rows of all parts of `options`. Raises `ConfigError`, `RunError` and `DataError`."""
    for part in _find_parts(options):
        yield from _read_part(part, options)


def fingerprint_rows(options: PolarsOptions) -> str:
    """A text that is another one whenever the rows are: of the files' bytes or versions and of what is read of them.

    Names of files do not count. Raises as `read_rows` does for files that cannot be had.
    """
    told = []
    for part in _find_parts(options):
        files = []
        for file in part.files:
            with reading(file):
                files.append([file.format, file.fingerprint()])
        told.append([part.rows.start, part.rows.stop, part.rows.is_percent, files])
    text = json.dumps([_VERSION, options.field, options.rows, told])
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()


def _find_parts(options: PolarsOptions) -> list[Part]:
    with _at_reading():
        return [Part(rows, find_files(options, rows.name)) for rows in parts_of(options)]


@contextmanager
def _at_reading() -> Iterator[None]:
    try:
        yield
    except SourceMistake as mistake:
        raise RunError(str(Problem(mistake.message, hints=mistake.hints))) from mistake


def _read_part(part: Part, options: PolarsOptions) -> Iterator[Row]:
    start, stop = _bounds(part, options)
    passed, empty = 0, True
    for file in part.files:
        if stop is not None and passed >= stop:
            break
        skip = max(start - passed, 0)
        if skip:
            count = count_rows(file, options)
            if count <= skip:
                passed += count
                continue
        passed += skip
        for row in itertools.islice(_read_file(file, options, skip), None if stop is None else stop - passed):
            passed += 1
            empty = False
            yield row
    # A single Parquet file without rows is an empty shard, which writers do produce; a whole dataset without is not.
    if empty:
        _refuse_empty(part, options)


def _bounds(part: Part, options: PolarsOptions) -> tuple[int, int | None]:
    """The first row of the part, and the one behind the last; None where it goes to the end of the files."""
    if part.rows.needs_count:
        return part.rows.bounds(sum(count_rows(file, options) for file in part.files))
    return part.rows.start or 0, part.rows.stop


def _refuse_empty(part: Part, options: PolarsOptions) -> None:
    count = 0 if part.rows.is_whole else sum(count_rows(file, options) for file in part.files)
    if not count:
        raise no_rows(part.files[0])
    others = f" and {len(part.files) - 1} more files" if len(part.files) > 1 else ""
    mistake = empty_slice(part.rows, count, f"'{part.files[0].source}'{others}")
    raise ConfigError.at(".split", mistake.message, *mistake.hints)


def count_rows(file: DataFile, options: PolarsOptions) -> int:
    """How many rows `file` has. None of them is held; those of JSON lines and tables are not even made."""
    if file.format == "jsonl":
        return count_lines(file)
    if file.format in ("parquet", "arrow"):
        return count_columns(file)
    return sum(1 for _ in _read_file(file, options, 0))


def _read_file(file: DataFile, options: PolarsOptions, skip: int) -> Iterator[Row]:
    """The rows of `file` behind the first `skip`."""
    if file.format == "jsonl":
        return read_jsonl(file, skip)
    if file.format in ("parquet", "arrow"):
        return read_columns(file, skip)
    readers: dict[str, Callable[[], Iterator[Row]]] = {
        "json": lambda: read_json(file, options.field),
        "csv": lambda: read_csv(file),
        "tsv": lambda: read_csv(file),
        "text": lambda: read_text(file, options.rows),
    }
    return itertools.islice(readers[file.format](), skip, None)
