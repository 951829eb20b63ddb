"""The rows of a window put together into sequences, and what is left of them for the next window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from dumbo.data.packing import pack
from dumbo.data.records import IGNORED

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_FULL = 0.95
"""A packed sequence with less than this share of its tokens may wait for rows of the next window."""
_MOST_WAITING = 8
"""So many sequences may wait: the tokens of what is carried over stay few."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A row, or a part of one, that stands in a sequence."""

    source: int
    """The number of the entry under `datasets:`."""
    tokens: NDArray[np.int32]
    trained: NDArray[np.bool_]
    """Which of them the row trains on. The first one is not predicted from anything, and never trained."""
    begins: bool = True
    """Whether the row begins here."""
    pass_number: int = 0
    """Which pass over the source it was read in, from 0."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def supervised(self) -> int:
        """How many tokens are trained on."""
        import numpy as np

        return int(np.count_nonzero(self.trained[1:]))

    @property
    def item(self) -> dict[str, Any]:
        """What a collator takes: `input_ids` and `labels`, int32 arrays, as items of a `TokenDataset` are."""
        import numpy as np

        labels = np.where(self.trained, self.tokens, np.int32(IGNORED))
        labels[0] = IGNORED
        return {"input_ids": self.tokens, "labels": labels}

    def cut(self, first: int, length: int) -> Piece:
        """The `length` tokens from `first` on."""
        place = slice(first, first + length)
        begins = self.begins and not first
        return replace(self, tokens=self.tokens[place], trained=self.trained[place], begins=begins)

    def write(self) -> dict[str, Any]:
        """The piece for JSON; the number of a token that is not trained is written as its complement, below 0."""
        import numpy as np

        signed = np.where(self.trained, self.tokens, ~self.tokens)
        place = {"source": self.source, "pass": self.pass_number, "begins": self.begins}
        return {**place, "tokens": signed.tolist()}

    @classmethod
    def read(cls, written: dict[str, Any]) -> Piece:
        """The piece that was written."""
        import numpy as np

        signed = np.array(written["tokens"], np.int32)
        tokens = np.where(signed < 0, ~signed, signed)
        return cls(written["source"], tokens, signed >= 0, written["begins"], written["pass"])


Group = tuple[Piece, ...]
"""A sequence."""

PutTogether = Callable[[Sequence[Piece], Sequence[Piece], int, bool], tuple[list[Group], list[Piece]]]
"""(carried over, of this window, tokens of a sequence, whether a sequence that may be short may wait for rows of the
next window) -> sequences, and what is carried over to the next window."""


def group_length(group: Group) -> int:
    """Tokens of a sequence."""
    return sum(map(len, group))


def put_together(packing: bool | Literal["joined"]) -> PutTogether:
    """How `trainer.data.packing` makes sequences of pieces."""
    return join if packing == "joined" else pack_window if packing else alone


def alone(
    carried: Sequence[Piece], fresh: Sequence[Piece], capacity: int, may_wait: bool
) -> tuple[list[Group], list[Piece]]:
    """Each piece is a sequence, and nothing is carried over."""
    return [(piece,) for piece in (*carried, *fresh)], []


def join(
    carried: Sequence[Piece], fresh: Sequence[Piece], capacity: int, may_wait: bool
) -> tuple[list[Group], list[Piece]]:
    """Pieces one after the other, cut where a sequence is full; the sequence that is not is always carried over."""
    groups: list[Group] = []
    open_group: list[Piece] = []
    space = capacity
    for piece in (*carried, *fresh):
        first = 0
        while first < len(piece):
            length = min(len(piece) - first, space)
            open_group.append(piece.cut(first, length))
            first, space = first + length, space - length
            if not space:
                groups.append(tuple(open_group))
                open_group, space = [], capacity
    return groups, open_group


def pack_window(
    carried: Sequence[Piece], fresh: Sequence[Piece], capacity: int, may_wait: bool
) -> tuple[list[Group], list[Piece]]:
    """Pieces by best fit, in the order of the first of each sequence. The emptiest sequences are carried over; but no
    piece is a second time, so that all of them come."""
    import numpy as np

    pieces = [*carried, *fresh]
    numbers = pack(np.array([len(piece) for piece in pieces], np.int32), capacity)
    groups: dict[int, list[Piece]] = {}
    for number, piece in zip(numbers.tolist(), pieces, strict=True):
        groups.setdefault(number, []).append(piece)
    if not may_wait:
        return [tuple(group) for group in groups.values()], []
    settled = set(numbers[: len(carried)].tolist())
    filled = {number: sum(map(len, group)) for number, group in groups.items() if number not in settled}
    waiting = sorted((number for number in filled if filled[number] < _FULL * capacity), key=lambda n: filled[n])
    waiting = waiting[: min(_MOST_WAITING, max(1, len(groups) // 4))]
    rest = [piece for number in waiting for piece in groups.pop(number)]
    return [tuple(group) for group in groups.values()], rest


def in_pass_order(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces with those of a source, in the places that it has, by their pass: none of a pass is in front of one of
    the pass before. Otherwise their order is kept."""
    of_source: dict[int, list[Piece]] = {}
    for piece in pieces:
        of_source.setdefault(piece.source, []).append(piece)
    by_pass = {source: iter(sorted(own, key=_pass_number)) for source, own in of_source.items()}
    return [next(by_pass[piece.source]) for piece in pieces]


def stretches(groups: Sequence[Group]) -> list[list[Group]]:
    """The groups in stretches that may be shuffled each for itself: the next one begins where a source has a later
    pass than this one has begun with."""
    found: list[list[Group]] = []
    first: dict[int, int] = {}
    for group in groups:
        if not found or any(piece.pass_number > first.get(piece.source, piece.pass_number) for piece in group):
            found.append([])
            first = {}
        found[-1].append(group)
        for piece in group:
            first[piece.source] = min(first.get(piece.source, piece.pass_number), piece.pass_number)
    return found


def _pass_number(piece: Piece) -> int:
    return piece.pass_number
