"""Streams of compressed files, told by their first bytes, whatever they are called."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from dumbo.errors import DataError, Place, Problem, RunError
from dumbo.plugins.polars.data_files import DataFile

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"


@contextmanager
def decompressed(file: DataFile, raw: io.BufferedReader) -> Iterator[io.BufferedReader]:
    """What is packed in `raw`, which are the bytes of `file`; `raw` itself where nothing is.

    Raises `DataError` for a stream that is damaged or cut off, `RunError` where a package is missing.
    """
    head = raw.peek(4)
    errors: tuple[type[Exception], ...]
    if head.startswith(_GZIP):
        kind, errors, stream = "gzip", (EOFError, zlib.error, gzip.BadGzipFile), _buffered(gzip.GzipFile(fileobj=raw))
    elif head.startswith(_ZSTD):
        kind, errors, stream = "zstd", *_open_zstd(file, raw)
    else:
        yield raw
        return
    try:
        yield stream
    except errors as error:
        hint = "was the download or copy interrupted?"
        raise DataError([Problem(f"broken {kind} file: {error}", place=Place(file.source), hints=(hint,))]) from error


def _open_zstd(file: DataFile, raw: io.BufferedReader) -> tuple[tuple[type[Exception], ...], io.BufferedReader]:
    """What is raised for a damaged stream, and the stream."""
    try:
        from backports import zstd  # Python has it itself from 3.14 on
    except ImportError as error:
        problem = Problem(
            f"{file.source}: reading zstd needs the package backports.zstd", hints=("pip install backports.zstd",)
        )
        raise RunError(str(problem)) from error
    return (EOFError, zstd.ZstdError), _buffered(zstd.ZstdFile(raw))


def _buffered(stream: object) -> io.BufferedReader:
    return io.BufferedReader(cast(io.RawIOBase, stream), 1 << 16)
