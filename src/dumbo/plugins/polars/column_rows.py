"""Rows of Parquet and Arrow files, through Polars, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars
from polars.exceptions import DuplicateError, PanicException, PolarsError

from dumbo.data.records import Row
from dumbo.errors import DataError
from dumbo.plugins.polars.data_files import DataFile
from dumbo.plugins.polars.text_files import file_error, reading, refuse_pointer, row_origin

# Small enough that long conversations stay within some MB, large enough that the cost of a batch is not seen.
_BATCH = 1024
_ARROW_FILE = b"ARROW1"


def read_columns(file: DataFile, skip: int = 0) -> Iterator[Row]:
    """Yield the rows of `file` behind the first `skip`, numbered from 1.

    Raises `DataError` for a file that is damaged or of another kind.
    """
    number = skip
    with reading(file), file.on_disk() as path:
        try:
            for batch in _batches(file, path, skip):
                for values in batch.iter_rows(named=True):
                    number += 1
                    yield Row(values, row_origin(file, number))
        except (PolarsError, PanicException) as error:
            raise _damaged(file, error, number) from error


def count_columns(file: DataFile) -> int:
    """How many rows a Parquet or Arrow file has. Raises as `read_columns` does."""
    with reading(file), file.on_disk() as path:
        try:
            scan = _scan(file, path)
            if scan is None:
                return polars.read_ipc_stream(path).height
            return int(scan.select(polars.len()).collect().item())
        except (PolarsError, PanicException) as error:
            raise _damaged(file, error, 0) from error


def _batches(file: DataFile, path: Path, skip: int) -> Iterator[polars.DataFrame]:
    scan = _scan(file, path)
    if scan is None:
        yield from polars.read_ipc_stream(path).slice(skip).iter_slices(_BATCH)
        return
    yield from scan.slice(skip).collect_batches(chunk_size=_BATCH, maintain_order=True, lazy=True)


def _scan(file: DataFile, path: Path) -> polars.LazyFrame | None:
    """What reads the file in parts; None for Arrow's stream format, which `datasets` saves.

    That has no index, so that Polars reads it as a whole.
    """
    with path.open("rb") as stream:
        head = stream.read(128)
    if not head:
        raise file_error(file, "the file is empty")
    refuse_pointer(file, head)
    if file.format == "parquet":
        return polars.scan_parquet(path, glob=False, hive_partitioning=False)
    return polars.scan_ipc(path, glob=False, hive_partitioning=False) if head.startswith(_ARROW_FILE) else None


def _damaged(file: DataFile, error: BaseException, rows: int) -> DataError:
    kind = "Parquet" if file.format == "parquet" else "Arrow"
    reason = str(error).partition("\n")[0]
    if isinstance(error, DuplicateError):
        return file_error(file, f"cannot be read: {reason}")
    after = f" after row {rows}" if rows else ""
    hint = "was the download or copy interrupted? for another kind of file say its `format`"
    return file_error(file, f"not a readable {kind} file{after}: {reason}", hint)
