"""Open text files of rows: decompressed, without byte order mark, and refused when they are something else."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

from dumbo.data.records import Origin
from dumbo.errors import DataError, Place, Problem, RunError
from dumbo.plugins.polars.compressed_files import decompressed
from dumbo.plugins.polars.data_files import DataFile

_UTF8_MARK = b"\xef\xbb\xbf"
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_OTHER_FORMATS = ((b"PAR1", "Parquet"), (b"ARROW1", "Arrow"), (b"PK\x03\x04", "zip"))
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def file_error(file: DataFile, message: str, *hints: str) -> DataError:
    """The error for a file that cannot be used as a whole."""
    return DataError([Problem(message, place=Place(file.source), hints=hints)])


def place_error(file: DataFile, line: int, column: int, message: str, *hints: str) -> DataError:
    """The error for a place in a file."""
    return DataError([Problem(message, place=Place(file.source, line, column), hints=hints)])


@contextmanager
def reading(file: DataFile) -> Iterator[None]:
    """Turn what the operating system raises inside into errors that name `file`."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{file.source}: cannot be read: {error.strerror or error}") from error


@contextmanager
def open_text(file: DataFile, *, may_be_empty: bool = False) -> Iterator[io.BufferedReader]:
    """Open `file` for reading UTF-8 bytes from their first character. Raises for empty and binary files."""
    with reading(file), file.open() as raw, decompressed(file, raw) as stream:
        head = stream.peek(4096)
        if head or not may_be_empty:
            refuse_other_content(file, head)
        if head.startswith(_UTF8_MARK):
            stream.read(len(_UTF8_MARK))
        yield stream


def refuse_other_content(file: DataFile, head: bytes) -> None:
    """Raise for a file whose first bytes say that it is not text in UTF-8, or nothing at all."""
    if not head:
        raise file_error(file, "the file is empty")
    refuse_pointer(file, head)
    for magic, name in _OTHER_FORMATS:
        if head.startswith(magic):
            hint = f"write `format: {name.lower()}`" if name in ("Parquet", "Arrow") else "unpack it first"
            raise file_error(file, f"this is a {name} file, not {file.format}", hint)
    if head.startswith(_UTF16_MARKS):
        raise file_error(file, "the text is encoded in UTF-16", "save it as UTF-8")
    if b"\0" in head:
        raise file_error(file, f"binary data, not {file.format}")


def refuse_pointer(file: DataFile, head: bytes) -> None:
    """Raise for the stub that Git leaves in place of a file in large file storage."""
    if head.startswith(_LFS_POINTER):
        raise file_error(file, "a Git LFS pointer, not the data itself", "fetch the data with `git lfs pull`")


def decode_line(raw: bytes, file: DataFile, line: int) -> str:
    """A line of `file` as text. Raises `DataError` naming line and column where it is not UTF-8."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        column = len(raw[: error.start].decode("utf-8")) + 1
        raise place_error(file, line, column, not_utf8(error), "save the file as UTF-8") from error


def not_utf8(error: UnicodeDecodeError) -> str:
    """What is wrong, for people."""
    return f"not text in UTF-8: byte 0x{error.object[error.start]:02x}"


def no_rows(file: DataFile) -> DataError:
    """The error for a file that can be read and holds nothing."""
    return file_error(file, "the file has no rows")


def row_origin(file: DataFile, row: int) -> Origin:
    """Where row or line `row` of `file` is."""
    return Origin(file.source, row)
