"""Safetensors files read and written in pieces: a header of JSON, then the bytes of one tensor after the other."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumbo.errors import Problem, RunError

if TYPE_CHECKING:
    from dumbo.merging.numbers import Array

_LENGTH = 8
"""Bytes of the number in front, which says how long the header is."""
_LARGEST_HEADER = 100 * 2**20
"""As the format has it."""


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: `size` bytes from `start` on in `file`."""

    name: str
    dtype: str
    """As safetensors writes it: BF16, F32 ..."""
    shape: tuple[int, ...]
    file: Path
    start: int
    size: int

    @property
    def rows(self) -> int:
        """Its first dimension; 1 for a single number."""
        return self.shape[0] if self.shape else 1

    @property
    def columns(self) -> int:
        """Numbers in each row."""
        return prod(self.shape[1:])

    def read_rows(self, begin: int, end: int, wide: Any, columns: int | None = None) -> Array:
        """Rows `begin` to `end`, as an array of `wide` with two dimensions; nothing else of the file is read. Rows have
        `columns` numbers each, by default all of the dimensions after the first."""
        from dumbo.merging.numbers import SIZES, widened

        columns = self.columns if columns is None else columns
        width = columns * SIZES[self.dtype]
        with self.file.open("rb", buffering=0) as stream:
            raw = read_at(stream.fileno(), self.start + begin * width, (end - begin) * width, self.file)
        return widened(raw, self.dtype, wide).reshape(end - begin, columns)

    def read(self, wide: Any) -> Array:
        """All of it, in its own shape. For what is small: parts of adapters."""
        return self.read_rows(0, self.rows, wide).reshape(self.shape)

    def same_bytes(self, other: StoredTensor) -> bool:
        """Whether two tensors hold the same, looked at in pieces."""
        if (self.dtype, self.shape) != (other.dtype, other.shape):
            return False
        step = 2**22
        with self.file.open("rb", buffering=0) as mine, other.file.open("rb", buffering=0) as its:
            return all(
                read_at(mine.fileno(), self.start + at, min(step, self.size - at), self.file)
                == read_at(its.fileno(), other.start + at, min(step, self.size - at), other.file)
                for at in range(0, self.size, step)
            )


def read_at(descriptor: int, start: int, size: int, file: Path) -> bytes:
    """`size` bytes from `start` on.

    Raises:
        RunError: the file ends before.
    """
    raw = os.pread(descriptor, size, start)
    while len(raw) < size:  # More than 2 GiB are not read at once.
        more = os.pread(descriptor, size - len(raw), start + len(raw))
        if not more:
            raise RunError(f"{file} ended while it was read\n    somebody writes to it, or it is damaged")
        raw += more
    return raw


def read_header(file: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of a safetensors file in the order of its bytes, and its notes.

    Raises:
        RunError: it is not whole, or no such file.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        first = stream.read(_LENGTH)
        if first.startswith(b"version "):
            raise RunError(f"{file} is a Git LFS pointer, not the weights; run 'git lfs pull' in its folder")
        length = int.from_bytes(first, "little") if len(first) == _LENGTH else 0
        if not 2 <= length <= min(_LARGEST_HEADER, size - _LENGTH):
            raise _damaged(file, "its header is cut off")
        raw = stream.read(length)
    try:
        header = json.loads(raw)
        notes = {str(key): str(value) for key, value in header.pop("__metadata__", None or {}).items()}
        begin = _LENGTH + length
        found = {str(name): _stored(str(name), entry, file, begin) for name, entry in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(file, "its header is no list of tensors") from error
    end = max((tensor.start + tensor.size for tensor in found.values()), default=begin)
    if end != size:
        what = f"it has {size:,} bytes and should have {end:,}"
        raise _damaged(file, what)
    return dict(sorted(found.items(), key=lambda item: item[1].start)), notes


def _stored(name: str, entry: Mapping[str, Any], file: Path, begin: int) -> StoredTensor:
    from dumbo.merging.numbers import SIZES

    dtype, shape = str(entry["dtype"]), tuple(int(number) for number in entry["shape"])
    start, end = entry["data_offsets"]
    bytes_each = SIZES.get(dtype)
    if bytes_each is not None and prod(shape) * bytes_each != end - start:
        raise ValueError(f"{name} has another size than its shape")
    return StoredTensor(name, dtype, shape, file, begin + int(start), int(end) - int(start))


def _damaged(file: Path, why: str) -> RunError:
    return RunError(str(Problem(f"{file} is damaged or incomplete: {why}", hints=("copy or download it again",))))


@dataclass(frozen=True)
class Planned:
    """A tensor that is to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Its bytes."""
        from dumbo.merging.numbers import SIZES

        return prod(self.shape) * SIZES[self.dtype]


def header_of(tensors: Sequence[Planned], notes: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """The first bytes of a file that will hold `tensors` in this order, and where in the file each begins."""
    entries: dict[str, Any] = {"__metadata__": dict(notes)} if notes else {}
    at, starts = 0, {}
    for tensor in tensors:
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [at, at + tensor.size],
        }
        starts[tensor.name] = at
        at += tensor.size
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # Readers may rely on aligned numbers.
    begin = _LENGTH + len(text)
    return len(text).to_bytes(_LENGTH, "little") + text, {name: begin + start for name, start in starts.items()}


def aligned(tensors: Sequence[Planned]) -> list[Planned]:
    """`tensors` in an order in which each begins at a multiple of its numbers' size: as they are, if they do."""
    from dumbo.merging.numbers import SIZES

    at, fits = 0, True
    for tensor in tensors:
        fits &= at % SIZES[tensor.dtype] == 0
        at += tensor.size
    return list(tensors) if fits else sorted(tensors, key=lambda tensor: -SIZES[tensor.dtype])
