"""From a dataset's options to its rows: find the files, then read each in its format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dumbo.data.records import Row
from dumbo.errors import Problem, RunError
from dumbo.plugins.polars.column_rows import read_columns
from dumbo.plugins.polars.csv_rows import read_csv
from dumbo.plugins.polars.data_files import DataFile, SourceMistake
from dumbo.plugins.polars.json_rows import read_json, read_jsonl
from dumbo.plugins.polars.local_files import find_local_files, is_hub_dataset
from dumbo.plugins.polars.text_files import no_rows

if TYPE_CHECKING:
    from dumbo.plugins.polars.plugin import PolarsOptions


def read_rows(options: PolarsOptions) -> Iterator[Row]:
    """Yield the rows of all files of `options`. Raises `RunError` and `DataError`."""
    files = _find_files(options)
    empty = True
    for file in files:
        for row in _read_file(file, options.field):
            empty = False
            yield row
    # A single Parquet file without rows is an empty shard, which writers do produce; a whole dataset without is not.
    if empty:
        raise no_rows(files[0])


def _find_files(options: PolarsOptions) -> Sequence[DataFile]:
    try:
        if not is_hub_dataset(options.path):
            return find_local_files(options)
        from dumbo.plugins.polars.hub import download_files

        return download_files(options)
    except SourceMistake as mistake:
        raise RunError(str(Problem(mistake.message, hints=mistake.hints))) from mistake


def _read_file(file: DataFile, field: str | None) -> Iterator[Row]:
    if file.format == "jsonl":
        return read_jsonl(file)
    if file.format == "json":
        return read_json(file, field)
    if file.format == "csv":
        return read_csv(file)
    return read_columns(file)
