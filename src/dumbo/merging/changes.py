"""What becomes of one tensor: sums, factors, norms and new rows, computed a few rows at a time.

Every tensor is seen as a matrix: its first dimension are the rows, or, where it holds a matrix per expert, the rows of
all experts below each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from dumbo.merging.numbers import Array
from dumbo.merging.tensor_files import Planned, StoredTensor

Block = Callable[[int, int], Array]
"""Rows from and up to -> their values."""

BLOCK = 2**18
"""Numbers that are computed at once: with float32 a mebibyte, which stays in a core's cache."""


@dataclass(frozen=True)
class Addend:
    """A matrix that is added to a part of the tensor, beginning at `row` and `column` of it."""

    row: int
    column: int
    rows: int
    columns: int
    load: Callable[[Any], Block]
    """Reads what it is made of, as numbers of a type, and returns what computes rows of it."""


@dataclass(frozen=True)
class Magnitude:
    """DoRA (arXiv 2402.09353): each row, or each column, gets a length of its own after the sum."""

    lengths: StoredTensor
    by_columns: bool = False
    row: int = 0
    rows: int | None = None
    """Where the tensor's part begins that it is for, and how many rows it has; None: all."""
    first: int = 0
    """The first of the lengths that are for this part."""


@dataclass(frozen=True)
class Factor:
    """IA3 (arXiv 2205.05638): each row, or each column, is multiplied by a number."""

    numbers: StoredTensor
    by_columns: bool
    weight: float = 1.0


@dataclass
class Change:
    """A tensor to be written that is not the base model's as it is there."""

    target: Planned
    source: StoredTensor
    """What it begins with: the base model's, or one that the adapter brings as a whole."""
    columns: int = 0
    addends: list[Addend] = field(default_factory=list)
    magnitude: Magnitude | None = None
    factors: list[Factor] = field(default_factory=list)
    fresh: list[tuple[tuple[int, ...], StoredTensor]] = field(default_factory=list)
    """Rows by their numbers, and the tensor with what they become."""
    simulate: Callable[[StoredTensor], Array] | None = None
    """Rounds the source to what it was in training, all of it at once."""

    def __post_init__(self) -> None:
        self.columns = self.columns or prod(self.source.shape[1:])

    @property
    def rows(self) -> int:
        """Of the matrix that it is seen as."""
        return prod(self.target.shape) // max(self.columns, 1)

    @property
    def old_rows(self) -> int:
        """Those that it begins with; a vocabulary may get more."""
        return prod(self.source.shape) // max(self.columns, 1)

    @property
    def is_only_cast(self) -> bool:
        """Whether nothing but the type of the numbers changes."""
        return not (self.addends or self.magnitude or self.factors or self.fresh or self.simulate)

    def open(self, wide: Any) -> Block:
        """Read what the adapter has for it; return what computes rows of the result, in `wide`."""
        summed = self._summed(wide)
        lengths = self._lengths(summed, wide)
        factors = [(each, each.numbers.read(wide).reshape(-1)) for each in self.factors]
        fresh = [(np.asarray(numbers), tensor) for numbers, tensor in self.fresh]

        def block(begin: int, end: int) -> Array:
            values = summed(begin, end)
            if lengths is not None:
                values = lengths(values, begin, end)
            for factor, numbers in factors:
                part = numbers if factor.by_columns else numbers[begin:end, None]
                values *= 1 + factor.weight * (part - 1)
            for numbers, tensor in fresh:
                for at in np.flatnonzero((numbers >= begin) & (numbers < end)):
                    values[numbers[at] - begin] = tensor.read_rows(int(at), int(at) + 1, wide)[0]
            return values

        return block

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows that fit a core's cache, one after the other."""
        step = max(1, BLOCK // max(self.columns, 1))
        for begin in range(0, self.rows, step):
            yield begin, min(begin + step, self.rows)

    def _summed(self, wide: Any) -> Block:
        base = self._base(wide)
        addends = [(addend, addend.load(wide)) for addend in self.addends]

        def block(begin: int, end: int) -> Array:
            values = base(begin, end)
            for addend, rows in addends:
                first, last = max(begin, addend.row), min(end, addend.row + addend.rows)
                if first < last:
                    part = values[first - begin : last - begin, addend.column : addend.column + addend.columns]
                    part += rows(first - addend.row, last - addend.row)
            return values

        return block

    def _base(self, wide: Any) -> Block:
        source, columns = self.source, self.columns
        old = self.old_rows
        if self.simulate is not None:
            whole = self.simulate(source).reshape(old, columns)
            return lambda begin, end: whole[begin:end].astype(wide)
        if old == self.rows:
            return lambda begin, end: source.read_rows(begin, end, wide, columns)
        mean = _mean_row(source, wide)

        def block(begin: int, end: int) -> Array:
            values = np.empty((end - begin, columns), wide)
            values[:] = mean
            if begin < old:
                values[: old - begin] = source.read_rows(begin, min(end, old), wide, columns)
            return values

        return block

    def _lengths(self, summed: Block, wide: Any) -> Callable[[Array, int, int], Array] | None:
        magnitude = self.magnitude
        if magnitude is None:
            return None
        lengths = magnitude.lengths.read(wide).reshape(-1)
        if magnitude.by_columns:
            squares = np.zeros(self.columns, np.float64)
            for begin, end in self.blocks():
                squares += np.square(summed(begin, end), dtype=np.float64).sum(axis=0)
            scale = (lengths / np.sqrt(squares)).astype(wide)
            return lambda values, begin, end: np.multiply(values, scale, out=values)
        first, count = magnitude.row, magnitude.rows or self.rows

        def block(values: Array, begin: int, end: int) -> Array:
            low, high = max(begin, first), min(end, first + count)
            if low < high:
                part = values[low - begin : high - begin]
                norms = np.sqrt(np.einsum("ij,ij->i", part, part))
                at = magnitude.first + low - first
                part *= (lengths[at : at + high - low] / norms)[:, None]
            return values

        return block


def _mean_row(tensor: StoredTensor, wide: Any) -> Array:
    """The mean of all rows, rounded to the tensor's own type, as new rows of a vocabulary begin."""
    from dumbo.merging.numbers import rounded, widened

    total = np.zeros(tensor.columns, np.float64)
    step = max(1, BLOCK // max(tensor.columns, 1))
    for begin in range(0, tensor.rows, step):
        total += tensor.read_rows(begin, min(begin + step, tensor.rows), wide).sum(axis=0, dtype=np.float64)
    mean = rounded((total / tensor.rows).astype(wide), tensor.dtype)
    return widened(mean.tobytes(), tensor.dtype, wide)
