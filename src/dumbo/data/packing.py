"""Rows put together into sequences of a fixed size, as full as they can be."""

from __future__ import annotations

import itertools
from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Contents = tuple[tuple[int, int], ...]
"""What is in a sequence: pairs of a length and how many rows have it."""


_LEAST = 64
"""A row is cut into pieces of at least this share of a sequence: shorter ones would teach next to nothing."""


@dataclass(frozen=True)
class Pieces:
    """Rows and pieces of rows, each with its place in a sequence."""

    row: NDArray[np.int64]
    """Numbers of rows."""
    first: NDArray[np.int64]
    """The first token of the piece in its row."""
    length: NDArray[np.int64]
    """Tokens of the piece."""
    sequence: NDArray[np.int64]

    def joined(self, others: Pieces) -> Pieces:
        """These, and then the others."""
        import numpy as np

        return Pieces(
            np.concatenate([self.row, others.row]),
            np.concatenate([self.first, others.first]),
            np.concatenate([self.length, others.length]),
            np.concatenate([self.sequence, others.sequence]),
        )


def pack_pieces(lengths: NDArray[np.int32], capacity: int) -> Pieces:
    """Rows packed as by `pack`, with those of more than `capacity` tokens cut into what is left free by the others, and
    then into sequences of their own.

    How they are cut depends on the lengths alone: the number of sequences does not change with the order of the rows.
    """
    import numpy as np

    is_long = lengths > capacity
    short, long = np.flatnonzero(~is_long), np.flatnonzero(is_long)
    sequences = pack(lengths[short], capacity)
    long = long[np.argsort(-lengths[long], kind="stable")]
    used = np.bincount(sequences, weights=lengths[short]).astype(np.int64)
    poured = np.array(_pour(lengths[long].tolist(), capacity - used, capacity), np.int64).reshape(-1, 4)
    whole = Pieces(short, np.zeros(len(short), np.int64), lengths[short].astype(np.int64), sequences)
    return whole.joined(Pieces(long[poured[:, 0]], poured[:, 1], poured[:, 2], poured[:, 3]))


def _pour(lengths: list[int], spaces: NDArray[np.int64], capacity: int) -> list[tuple[int, int, int, int]]:
    """Rows of `lengths` one after the other into `spaces`, the largest first, and then into as many whole sequences as
    that takes: pieces of (row, first token, length, sequence)."""
    import numpy as np

    least = max(capacity // _LEAST, 1)
    by_space = np.argsort(-spaces, kind="stable")
    filled = by_space[spaces[by_space] >= least].tolist()
    rooms = itertools.chain(
        zip(filled, spaces[filled].tolist(), strict=True),
        zip(itertools.count(len(spaces)), itertools.repeat(capacity), strict=False),
    )
    pieces: list[tuple[int, int, int, int]] = []
    sequence, space = 0, 0
    for row, length in enumerate(lengths):
        first = 0
        while first < length:
            left = length - first
            taken = left if left <= space else min(space, left - least)
            if taken < least:
                sequence, space = next(rooms)
                continue
            pieces.append((row, first, taken, sequence))
            first, space = first + taken, space - taken
    return pieces


def pack(lengths: NDArray[np.int32], capacity: int) -> NDArray[np.int64]:
    """The sequence of each row, numbered from 0: by best fit decreasing, each row goes where the least space is left
    that it fits into (Johnson, Near-optimal bin packing algorithms, 1973).

    Rows of one length are alike, so it is decided for all of them at once: the number of sequences depends on the
    lengths alone, whatever the order of the rows, and of rows of one length the first ones go to the first sequences.

    Raises:
        ValueError: a row is longer than `capacity` tokens.
    """
    import numpy as np

    if len(lengths) and lengths.max() > capacity:
        raise ValueError(f"a row has {lengths.max()} tokens, and a sequence {capacity}")
    values, counts = np.unique(lengths, return_counts=True)
    sequences = np.zeros(len(lengths), np.int64)
    places: dict[int, list[NDArray[np.int64]]] = {int(value): [] for value in values}
    first = 0
    for contents, count in _patterns(values[::-1].tolist(), counts[::-1].tolist(), capacity):
        numbers = np.arange(first, first + count)
        for length, per_sequence in contents:
            places[length].append(np.repeat(numbers, per_sequence))
        first += count
    # Rows in the order of their lengths, each length's in their own order, meet the places in the same order.
    by_length = np.argsort(lengths, kind="stable")
    sequences[by_length] = np.concatenate([place for value in places for place in places[value]] or [by_length])
    return sequences


def _patterns(lengths: list[int], counts: list[int], capacity: int) -> list[tuple[Contents, int]]:
    """The contents of sequences, and how many have them; `lengths` fall, `counts` says how many rows have each."""
    spaces: list[int] = []
    """The spaces that are left in some sequences, rising."""
    groups: dict[int, list[tuple[Contents, int]]] = {}
    """By space: contents, and the number of sequences that have them."""

    def put(space: int, contents: Contents, count: int) -> None:
        if not count:
            return
        if space not in groups:
            groups[space] = []
            insort(spaces, space)
        groups[space].append((contents, count))

    contents: Contents
    for length, count in zip(lengths, counts, strict=True):
        left = count
        while left:
            at = bisect_left(spaces, length)
            if at == len(spaces):
                contents = ()
                available, space = -(-left // (capacity // length)), capacity
            else:
                space = spaces[at]
                contents, available = groups[space].pop()
                if not groups[space]:
                    del groups[space], spaces[at]
            each = space // length
            used, rest = divmod(left, each)
            used, rest = (available, 0) if used >= available else (used, rest)
            put(space - each * length, (*contents, (length, each)), used)
            put(space - rest * length, (*contents, (length, rest)), 1 if rest else 0)
            left -= used * each + rest
            if contents or space < capacity:
                put(space, contents, available - used - (1 if rest else 0))
    return [group for space in sorted(groups) for group in groups[space]]
