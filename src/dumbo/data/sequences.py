"""What a forward pass is given in each epoch: sequences of one row, or of several that are packed together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from dumbo.data.dataset import RowIndex
from dumbo.data.mixing import Mixture, Share
from dumbo.data.packing import Pieces, pack_pieces

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MOST_EPOCHS = 256
"""Epochs that are planned beforehand, where each has other rows."""

_STREAM = 4
"""Keeps the generator apart from others that are seeded by the run's seed."""


@dataclass(frozen=True)
class EpochSequences:
    """The sequences of an epoch in the order of training: sequence `i` is `rows[bounds[i]:bounds[i + 1]]`."""

    rows: NDArray[np.int64]
    bounds: NDArray[np.int64]
    lengths: NDArray[np.int64]
    """Tokens of each sequence."""
    pieces: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    """For each of `rows`, the first token of it that belongs to the sequence, and how many do; None: all."""

    def rows_of(self, number: int) -> Sequence[RowIndex]:
        """The rows of a sequence, or the pieces of rows, as a `TokenDataset` is indexed."""
        place = slice(self.bounds[number], self.bounds[number + 1])
        rows: list[int] = self.rows[place].tolist()
        if self.pieces is None:
            return rows
        first, length = self.pieces
        return list(zip(rows, first[place].tolist(), length[place].tolist(), strict=True))


class Sequences(Protocol):
    """The sequences of each epoch, always as many."""

    def __len__(self) -> int:
        """Sequences of an epoch."""
        ...

    @property
    def filling(self) -> str | None:
        """What there is to say of how the sequences are filled; None where each is a row."""
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

    @property
    def filling(self) -> None:
        """Each sequence is a row."""
        return

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
class _Planned:
    """Sequences of at most `capacity` tokens, of which every epoch has as many: as the one that needs most of them."""

    lengths: NDArray[np.int32]
    """Tokens of each row of the data set."""
    mixture: Mixture
    capacity: int
    num_epochs: int
    """How many epochs there will be. Rows are chosen anew in the first 256 of them, and then as in those again."""
    seed: int
    shuffle: bool
    _count: int = field(init=False)

    def __post_init__(self) -> None:
        """Plan all epochs: from now on it is known how many sequences there are."""
        epochs = range(1 if self.mixture.is_whole else min(self.num_epochs, _MOST_EPOCHS))
        object.__setattr__(self, "_count", max(self._needed(epoch) for epoch in epochs))

    def __len__(self) -> int:
        """Sequences of an epoch."""
        return self._count

    def _needed(self, epoch: int) -> int:
        """How many sequences the rows of an epoch need."""
        raise NotImplementedError

    def _rows(self, epoch: int) -> NDArray[np.int64]:
        """The rows of an epoch, in its order."""
        import numpy as np

        rows = self.mixture.rows(epoch if self.mixture.is_whole else epoch % min(self.num_epochs, _MOST_EPOCHS))
        return rows[np.random.default_rng([self.seed, _STREAM, epoch]).permutation(len(rows))] if self.shuffle else rows


@dataclass(frozen=True)
class PackedRows(_Planned):
    """Sequences of several rows, together no longer than `capacity` tokens.

    Longer rows are cut: into what fits behind the others, and then into whole sequences. Rows of one length meet others
    in each epoch. Where an epoch has other rows than the one before, and could do with fewer sequences, some are made
    of a part of another, so that all epochs have as many.
    """

    def _needed(self, epoch: int) -> int:
        return int(self._pack(epoch).sequence.max(initial=-1)) + 1

    @property
    def filling(self) -> str:
        """How full the sequences of the first epoch are, in words."""
        tokens = int(self.of_epoch(0).lengths.sum())
        full = tokens / max(len(self) * self.capacity, 1)
        return f"{len(self.mixture):,} rows packed into {len(self):,} sequences, {full:.1%} full"

    def of_epoch(self, epoch: int) -> EpochSequences:
        """The sequences of an epoch, from 0."""
        import numpy as np

        pieces = _spread(self._pack(epoch), len(self), self.lengths[self._rows(epoch)] > self.capacity)
        numbers = pieces.sequence
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self))
            numbers = order[numbers]
        else:  # As in the files, as far as that goes: by the first row of each.
            first = np.full(len(self), len(self.lengths))
            np.minimum.at(first, numbers, pieces.row)
            numbers = np.argsort(np.argsort(first, kind="stable"), kind="stable")[numbers]
        by_number = np.argsort(numbers, kind="stable")
        lengths = np.bincount(numbers, weights=pieces.length, minlength=len(self)).astype(np.int64)
        bounds = np.concatenate([[0], np.cumsum(np.bincount(numbers, minlength=len(self)))])
        rows = self._rows(epoch)[pieces.row][by_number]
        is_cut = bool((pieces.length < self.lengths[self._rows(epoch)][pieces.row]).any())
        cut = (pieces.first[by_number], pieces.length[by_number]) if is_cut else None
        return EpochSequences(rows, bounds, lengths, cut)

    def _pack(self, epoch: int) -> Pieces:
        """The pieces of an epoch's rows, each of which is one by its place in `_rows`."""
        return pack_pieces(self.lengths[self._rows(epoch)], self.capacity)


@dataclass(frozen=True)
class JoinedRows(_Planned):
    """Rows one after the other, cut where a sequence has `capacity` tokens: no token is left out, and none comes twice.

    The last sequence of an epoch is shorter. Where an epoch has fewer tokens than another, because it has other rows,
    its last ones are, so that all epochs have as many.
    """

    def _needed(self, epoch: int) -> int:
        return -(-int(self.lengths[self._rows(epoch)].sum()) // self.capacity)

    @property
    def num_cut(self) -> int:
        """How many sequences of the first epoch begin within a row: the token there is conditioned on nothing."""
        pieces = self.of_epoch(0).pieces
        return int((pieces[0] > 0).sum()) if pieces else 0

    @property
    def filling(self) -> str:
        """How many rows are joined, and how many sequences begin within one, in words."""
        which = f"{self.num_cut:,} of them begin within a row, and the first token there is not trained"
        return f"{len(self.mixture):,} rows joined to {len(self):,} sequences; {which}"

    def of_epoch(self, epoch: int) -> EpochSequences:
        """The sequences of an epoch, from 0."""
        import numpy as np

        rows = self._rows(epoch)
        ends = np.cumsum(self.lengths[rows], dtype=np.int64)
        cuts = self._cuts(int(ends[-1]))
        starts = np.unique(np.concatenate([[0], ends[:-1], cuts[:-1]]))
        length = np.diff(np.append(starts, ends[-1]))
        place = np.searchsorted(ends, starts, side="right")
        first = starts - (ends - self.lengths[rows])[place]
        bounds = np.searchsorted(starts, cuts)
        sequences = EpochSequences(
            rows[place], np.concatenate([[0], bounds]), np.diff(cuts, prepend=0), (first, length)
        )
        return self._shuffled(sequences, epoch) if self.shuffle else sequences

    def _cuts(self, tokens: int) -> NDArray[np.int64]:
        """Where each sequence ends: as many of them as can be are full, and the others share what is left."""
        import numpy as np

        full = max(min((tokens - len(self)) // (self.capacity - 1), len(self) - 1), 0)
        rest, others = tokens - full * self.capacity, len(self) - full
        after = np.arange(1, others + 1) * rest // others
        return np.concatenate([np.arange(1, full + 1) * self.capacity, full * self.capacity + after])

    def _shuffled(self, sequences: EpochSequences, epoch: int) -> EpochSequences:
        """The same in a new order, the full ones first: the pieces of a long row do not follow each other."""
        import numpy as np

        order = np.random.default_rng([self.seed, epoch]).permutation(len(self))
        order = order[np.argsort(sequences.lengths[order] < self.capacity, kind="stable")]
        counts = np.diff(sequences.bounds)[order]
        bounds = np.concatenate([[0], np.cumsum(counts)])
        # Pieces keep their order within a sequence.
        places = np.repeat(sequences.bounds[:-1][order] - bounds[:-1], counts) + np.arange(len(sequences.rows))
        first, length = sequences.pieces or (places, places)
        return EpochSequences(sequences.rows[places], bounds, sequences.lengths[order], (first[places], length[places]))


def _spread(pieces: Pieces, count: int, is_long: NDArray[np.bool_]) -> Pieces:
    """The pieces in `count` sequences: the last one of some is moved to a sequence of its own, and where that is not
    enough, pieces of rows that `is_long` are halved."""
    import numpy as np

    missing = count - (int(pieces.sequence.max(initial=-1)) + 1)
    if missing <= 0:
        return pieces
    by_number = np.argsort(pieces.sequence, kind="stable")
    is_later = np.zeros(len(by_number), bool)
    is_later[1:] = pieces.sequence[by_number][1:] == pieces.sequence[by_number][:-1]
    moved = by_number[is_later][:missing]
    spread = pieces.sequence.copy()
    spread[moved] = count - missing + np.arange(len(moved))
    pieces = replace(pieces, sequence=spread)
    if len(moved) == missing:
        return pieces
    halved = np.flatnonzero(is_long[pieces.row] & (pieces.length > 1))
    halved = halved[np.argsort(-pieces.length[halved], kind="stable")][: missing - len(moved)]
    if not len(halved):
        return pieces
    kept = pieces.length.copy()
    kept[halved] = (kept[halved] + 1) // 2
    behind = Pieces(
        pieces.row[halved],
        pieces.first[halved] + kept[halved],
        pieces.length[halved] - kept[halved],
        count - missing + len(moved) + np.arange(len(halved)),
    )
    return _spread(replace(pieces, length=kept).joined(behind), count, is_long)
