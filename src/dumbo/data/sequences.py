"""What a forward pass is given in each epoch: sequences of one row, or of several that are packed together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from dumbo.data.mixing import Mixture, Share
from dumbo.data.packing import pack

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_STREAM = 4
"""Keeps the generator apart from others that are seeded by the run's seed."""


@dataclass(frozen=True)
class EpochSequences:
    """The sequences of an epoch in the order of training: sequence `i` is `rows[bounds[i]:bounds[i + 1]]`."""

    rows: NDArray[np.int64]
    bounds: NDArray[np.int64]
    lengths: NDArray[np.int64]
    """Tokens of each sequence."""

    def rows_of(self, number: int) -> list[int]:
        """The rows of a sequence."""
        rows: list[int] = self.rows[self.bounds[number] : self.bounds[number + 1]].tolist()
        return rows


class Sequences(Protocol):
    """The sequences of each epoch, always as many."""

    def __len__(self) -> int:
        """Sequences of an epoch."""
        ...

    def of_epoch(self, epoch: int) -> EpochSequences:
        """The sequences of an epoch, from 0; the same whenever they are asked for."""
        ...


@dataclass(frozen=True)
class SingleRows:
    """Each row is a sequence."""

    lengths: NDArray[np.int32]
    """Tokens of each row of the data set."""
    mixture: Mixture
    seed: int
    shuffle: bool

    def __len__(self) -> int:
        """Sequences of an epoch."""
        return len(self.mixture)

    def of_epoch(self, epoch: int) -> EpochSequences:
        """The sequences of an epoch, from 0."""
        import numpy as np

        rows = self.mixture.rows(epoch)
        if self.shuffle:
            rows = rows[np.random.default_rng([self.seed, epoch]).permutation(len(rows))]
        return EpochSequences(rows, np.arange(len(rows) + 1), self.lengths[rows].astype(np.int64))


def single_rows(lengths: NDArray[np.int32], seed: int, shuffle: bool) -> SingleRows:
    """All rows, each once in an epoch."""
    import numpy as np

    mixture = Mixture((Share(np.arange(len(lengths)), len(lengths)),), seed, shuffle)
    return SingleRows(lengths, mixture, seed, shuffle)


@dataclass(frozen=True)
class PackedRows:
    """Sequences of several rows, together no longer than `capacity` tokens.

    Rows of one length meet others in each epoch. Where an epoch has other rows than the one before, and could do with
    fewer sequences, some are made of a part of another, so that all epochs have as many.
    """

    lengths: NDArray[np.int32]
    """Tokens of each row of the data set."""
    mixture: Mixture
    capacity: int
    num_epochs: int
    """How many epochs there will be; asked for others, the number of sequences may be another one."""
    seed: int
    shuffle: bool
    _count: int = field(init=False)

    def __post_init__(self) -> None:
        """Plan all epochs: from now on it is known how many sequences there are."""
        epochs = range(1 if self.mixture.is_whole else self.num_epochs)
        counts = [int(self._pack(epoch)[1].max(initial=-1)) + 1 for epoch in epochs]
        object.__setattr__(self, "_count", max(counts))

    def __len__(self) -> int:
        """Sequences of an epoch."""
        return self._count

    @property
    def fullness(self) -> float:
        """The share of positions that hold a token, in the first epoch."""
        return float(self.of_epoch(0).lengths.sum()) / max(len(self) * self.capacity, 1)

    def of_epoch(self, epoch: int) -> EpochSequences:
        """The sequences of an epoch, from 0."""
        import numpy as np

        rows, numbers = self._pack(epoch)
        numbers = _spread(numbers, len(self))
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self))
            numbers = order[numbers]
        else:  # As in the files, as far as that goes: by the first row of each.
            first = np.full(len(self), len(rows))
            np.minimum.at(first, numbers, np.arange(len(rows)))
            numbers = np.argsort(np.argsort(first, kind="stable"), kind="stable")[numbers]
        by_number = np.argsort(numbers, kind="stable")
        lengths = np.bincount(numbers, weights=self.lengths[rows], minlength=len(self)).astype(np.int64)
        bounds = np.concatenate([[0], np.cumsum(np.bincount(numbers, minlength=len(self)))])
        return EpochSequences(rows[by_number], bounds, lengths)

    def _pack(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The rows of an epoch, and the number of each one's sequence."""
        import numpy as np

        rows = self.mixture.rows(epoch)
        if self.shuffle:
            rows = rows[np.random.default_rng([self.seed, _STREAM, epoch]).permutation(len(rows))]
        return rows, pack(self.lengths[rows], self.capacity)


def _spread(numbers: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Sequences of rows with the last row of some in sequences of their own, until there are `count`."""
    import numpy as np

    missing = count - (int(numbers.max(initial=-1)) + 1)
    if missing <= 0:
        return numbers
    by_number = np.argsort(numbers, kind="stable")
    is_later = np.zeros(len(numbers), bool)
    is_later[1:] = numbers[by_number][1:] == numbers[by_number][:-1]
    moved = by_number[is_later][:missing]
    spread = numbers.copy()
    spread[moved] = count - 1 - np.arange(len(moved))
    return spread
