"""Rows of Parquet and Arrow files, through Polars, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator

import polars
from polars.exceptions import DuplicateError, PanicException, PolarsError

from dumbo.data.records import Row
from dumbo.errors import DataError
from dumbo.plugins.polars.data_files import DataFile
from dumbo.plugins.polars.text_files import file_error, reading, refuse_pointer, row_origin

# Small enough that long conversations stay within some MB, large enough that the cost of a batch is not seen.
_BATCH = 1024
_ARROW_FILE = b"ARROW1"


def read_columns(file: DataFile) -> Iterator[Row]:
    """Yield the rows of `file`, numbered from 1. Raises `DataError` for a file that is damaged or of another kind."""
    number = 0
    with reading(file):
        try:
            for batch in _batches(file):
                for values in batch.iter_rows(named=True):
                    number += 1
                    yield Row(values, row_origin(file, number))
        except (PolarsError, PanicException) as error:
            raise _damaged(file, error, number) from error


def _batches(file: DataFile) -> Iterator[polars.DataFrame]:
    with file.path.open("rb") as stream:
        head = stream.read(128)
    if not head:
        raise file_error(file, "the file is empty")
    refuse_pointer(file, head)
    if file.format == "parquet":
        scan = polars.scan_parquet(file.path, glob=False, hive_partitioning=False)
    elif head.startswith(_ARROW_FILE):
        scan = polars.scan_ipc(file.path, glob=False, hive_partitioning=False)
    else:
        # Arrow's stream format, which `datasets` saves. It has no index, so that Polars reads it as a whole.
        yield from polars.read_ipc_stream(file.path).iter_slices(_BATCH)
        return
    yield from scan.collect_batches(chunk_size=_BATCH, maintain_order=True, lazy=True)


def _damaged(file: DataFile, error: BaseException, rows: int) -> DataError:
    kind = "Parquet" if file.format == "parquet" else "Arrow"
    reason = str(error).partition("\n")[0]
    if isinstance(error, DuplicateError):
        return file_error(file, f"cannot be read: {reason}")
    after = f" after row {rows}" if rows else ""
    hint = "was the download or copy interrupted? for another kind of file say its `format`"
    return file_error(file, f"not a readable {kind} file{after}: {reason}", hint)
