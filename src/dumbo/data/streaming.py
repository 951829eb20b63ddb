"""Sequences of an endless stream of rows, mixed, shuffled and put together in windows; it can go on from any place."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from dumbo.data.ahead import Ahead
from dumbo.data.lengths import WAYS_OUT
from dumbo.data.records import IGNORED, Example
from dumbo.data.windows import Group, Piece, group_length, in_pass_order, put_together, stretches
from dumbo.errors import ConfigError, Problem

if TYPE_CHECKING:
    import numpy as np

OpenRows = Callable[[int, int], Iterator[Example | None]]
"""(source, rows to skip) -> an item for each row of the source's pass that is left; None for one that cannot be used.
What is skipped need not be tokenised."""

_STREAM = 5
"""Keeps the generator apart from others that are seeded by the run's seed."""


@dataclass(frozen=True)
class StreamSettings:
    """What decides, together with the rows, which sequences a stream has."""

    capacity: int
    """Tokens that a sequence has at most."""
    weights: tuple[float, ...]
    """The share of each source; those with 0 are never read."""
    mix: Literal["rows", "tokens"] = "rows"
    """What they are shares of."""
    packing: bool | Literal["joined"] = False
    too_long: Literal["error", "drop", "truncate", "split"] = "error"
    window_rows: int = 1000
    shuffle: bool = True
    seed: int = 0


@dataclass
class Position:
    """How far a source was read."""

    passes: int = 0
    """Whole passes over it."""
    row: int = 0
    """Rows of this pass that were read, whatever became of them."""
    pass_rows: int = 0
    """Those of them that were used."""
    pass_tokens: int = 0
    rows: int = 0
    """Rows that were used, in all passes; so too `tokens`."""
    tokens: int = 0
    whole_rows: int = 0
    """What a whole pass has, once there was one."""
    whole_tokens: int = 0
    too_long: int = 0
    """Of the first pass, as it is the same in all; so too the others from here on."""
    emptied: int = 0
    """Rows and pieces of rows that were left out as cutting left nothing to train in them."""


@dataclass
class Trained:
    """What was taken of a source to train on."""

    passes: int = 0
    """Passes that were begun."""
    rows: int = 0
    tokens: int = 0
    supervised: int = 0


@dataclass(frozen=True)
class PassEnd:
    """A source was read to its end, and is trained on anew."""

    source: int
    number: int
    """Which pass it was, from 1."""
    rows: int
    tokens: int


@dataclass(frozen=True)
class _Place:
    """The beginning of a window."""

    window: int
    positions: tuple[Position, ...]
    carried: tuple[Piece, ...]


@dataclass(frozen=True)
class _Window:
    place: _Place
    groups: list[Group]
    after: tuple[Position, ...]


class Stream:
    """An endless row of sequences. Every row of a source comes once in each pass over it, and no token of it is lost
    unless `too_long` says so: what does not fill a sequence at the end of a window goes on into the next window.

    A window has at most `window_rows` rows. It ends where a source ends that is the only one or has as many rows, so
    that no row comes again before all others have come. Smaller sources of a mixture would make windows tiny: of
    theirs a window may have several passes, one after the other; there alone, packing may take a row of the next pass
    into a sequence that comes before the last of this pass.
    """

    def __init__(
        self,
        open_rows: OpenRows,
        settings: StreamSettings,
        state: Mapping[str, Any] | None = None,
        on_pass_end: Callable[[PassEnd], None] = lambda ended: None,
    ) -> None:
        """With the `state` of another stream over the same rows with the same settings, go on where that was.

        `on_pass_end` is called when a row of another pass is taken.

        Raises:
            ValueError: the state is one of another number of sources.
        """
        self.settings = settings
        count = len(settings.weights)
        self._place = _Place(0, tuple(Position() for _ in range(count)), ())
        self._taken, self._skipped = 0, 0
        self.trained = [Trained() for _ in range(count)]
        """Of each source, what was taken."""
        if state is not None:
            self._resume(state)
        self.fingerprint = ""
        """Stands for the rows that it is made of, as far as whoever made it knows them."""
        self.positions: tuple[Position, ...] = self._place.positions
        """How far each source was read for the sequences that are being taken."""
        self._groups: list[Group] = []
        self._on_pass_end = on_pass_end
        self._windows = Ahead(_windows(open_rows, settings, self._place))

    def _resume(self, state: Mapping[str, Any]) -> None:
        if len(state["sources"]) != len(self.trained):
            count = len(state["sources"])
            raise ValueError(f"the state of a stream of {count} sources cannot go on with {len(self.trained)}")
        positions = tuple(Position(**position) for position in state["sources"])
        carried = tuple(Piece.read(piece) for piece in state["carried"])
        self._place = _Place(state["window"], positions, carried)
        self._taken = self._skipped = state["taken"]
        self.trained = [Trained(**trained) for trained in state["trained"]]

    def take(self, count: int) -> list[Group]:
        """The next `count` sequences.

        Raises:
            DumboError: a row cannot be used, or a source has none that can.
        """
        taken: list[Group] = []
        while len(taken) < count:
            if self._taken >= len(self._groups):
                self._next_window()
            groups = self._groups[self._taken : self._taken + count - len(taken)]
            self._taken += len(groups)
            taken += groups
        for group in taken:
            for piece in group:
                of_source = self.trained[piece.source]
                if piece.pass_number >= of_source.passes:
                    self._begin_pass(piece)
                of_source.rows += piece.begins
                of_source.tokens += len(piece)
                of_source.supervised += piece.supervised
        return taken

    def _next_window(self) -> None:
        window = next(self._windows)
        self._place, self._groups, self.positions = window.place, window.groups, window.after
        self._taken, self._skipped = self._skipped, 0

    def _begin_pass(self, piece: Piece) -> None:
        self.trained[piece.source].passes = piece.pass_number + 1
        if piece.pass_number:
            position = self.positions[piece.source]
            ended = PassEnd(piece.source, piece.pass_number, position.whole_rows, position.whole_tokens)
            self._on_pass_end(ended)

    def state(self) -> dict[str, Any]:
        """Where the stream is, behind the last sequence that was taken, for JSON: small, whatever the rows are."""
        return {
            "window": self._place.window,
            "taken": self._taken,
            "sources": [asdict(position) for position in self._place.positions],
            "carried": [piece.write() for piece in self._place.carried],
            "trained": [asdict(trained) for trained in self.trained],
        }

    def close(self) -> None:
        """Stop reading."""
        self._windows.close()


def rank_batches(batch: Sequence[Group], physical_batch_size: int, world_size: int, rank: int) -> Iterator[list[Piece]]:
    """The pieces of each forward pass of `rank`, of a global batch that all ranks have. The longest sequences come
    first, and together, as in a `BatchPlan`."""
    by_length = sorted(batch, key=group_length, reverse=True)
    at_once = physical_batch_size * world_size
    for first in range(0, len(by_length), at_once):
        groups = by_length[first : first + at_once][rank::world_size]
        yield [piece for group in groups for piece in group]


def _windows(open_rows: OpenRows, settings: StreamSettings, place: _Place) -> Generator[_Window]:
    """All windows from `place` on."""
    import numpy as np

    rows = _MixedRows(open_rows, settings, [replace(position) for position in place.positions])
    assemble = put_together(settings.packing)
    while True:
        draw = np.random.default_rng([settings.seed, _STREAM, place.window])
        fresh, is_end = rows.window(bool(place.carried))
        if settings.shuffle:
            fresh = in_pass_order(_shuffled(fresh, draw))
        groups, carried = assemble(place.carried, fresh, settings.capacity, not is_end)
        if settings.shuffle:
            groups = [group for stretch in stretches(groups) for group in _shuffled(stretch, draw)]
        after = tuple(replace(position) for position in rows.positions)
        yield _Window(place, groups, after)
        place = _Place(place.window + 1, after, tuple(carried))


def _shuffled(items: list[Any], draw: np.random.Generator) -> list[Any]:
    return [items[index] for index in draw.permutation(len(items))]


@dataclass
class _MixedRows:
    """The rows of all sources, always the next of the one that is furthest behind its share."""

    open_rows: OpenRows
    settings: StreamSettings
    positions: list[Position]
    _opened: dict[int, Iterator[Example | None]] = field(default_factory=dict)

    def window(self, is_begun: bool) -> tuple[list[Piece], bool]:
        """The pieces of the rows of a window, and whether it ends because a source does; where something `is_begun`
        there may be none.

        Raises:
            DumboError: a row is refused, or a source has none that can be used.
        """
        pieces: list[Piece] = []
        count = 0
        while count < self.settings.window_rows:
            source = self._furthest_behind()
            if row := self._next_row(source):
                pieces += row
                count += 1
            elif (pieces or is_begun) and self._ends_windows(source):
                return pieces, True
        return pieces, False

    def _ends_windows(self, source: int) -> bool:
        is_alone = sum(map(bool, self.settings.weights)) == 1
        return is_alone or self.positions[source].whole_rows >= self.settings.window_rows

    def _next_row(self, source: int) -> list[Piece]:
        """The pieces of the source's next row that can be used; none where its pass ends."""
        position = self.positions[source]
        pieces: list[Piece] = []
        while not pieces:
            if source not in self._opened:
                self._opened[source] = self.open_rows(source, position.row)
            try:
                example = next(self._opened[source])
            except StopIteration:
                self._end_pass(source)
                return []
            position.row += 1
            if example is not None:
                pieces = self._fit(source, example)
        tokens = sum(map(len, pieces))
        position.rows, position.pass_rows = position.rows + 1, position.pass_rows + 1
        position.tokens, position.pass_tokens = position.tokens + tokens, position.pass_tokens + tokens
        return pieces

    def _furthest_behind(self) -> int:
        weights, by_tokens = self.settings.weights, self.settings.mix == "tokens"
        had = [position.tokens if by_tokens else position.rows for position in self.positions]
        per_weight = sum(had) / sum(weights)
        return max(
            (source for source, weight in enumerate(weights) if weight),
            key=lambda source: weights[source] * per_weight - had[source],
        )

    def _end_pass(self, source: int) -> None:
        position = self.positions[source]
        if not position.pass_rows:
            hint = "none of its rows can be used; the first of them are looked at by 'dumbo check --rows'"
            message = f"has no row to train on among its {position.row}" if position.row else "has no rows"
            raise ConfigError([Problem(message, ("datasets", source), hints=(hint,) if position.row else ())])
        position.passes += 1
        position.whole_rows, position.whole_tokens = position.pass_rows, position.pass_tokens
        position.row = position.pass_rows = position.pass_tokens = 0
        del self._opened[source]

    def _fit(self, source: int, example: Example) -> list[Piece]:
        """The row in pieces that fit, by `too_long`; joined rows are cut where they are joined."""
        import numpy as np

        capacity, policy = self.settings.capacity, self.settings.too_long
        if example.columns:
            message = f"the row has a column '{min(example.columns)}' beside its tokens"
            raise example.origin.error(message, "a stream passes on tokens alone: remove trainer.data.streaming")
        tokens = np.asarray(example.input_ids, np.int32)
        position = self.positions[source]
        trained = np.asarray(example.labels, np.int32) != IGNORED
        row = Piece(source, tokens, trained, pass_number=position.passes)
        if len(row) <= capacity or self.settings.packing == "joined":
            return [row]
        if policy == "error":
            raise example.origin.error(f"the row is longer than {capacity} tokens (it has {len(row)})", *WAYS_OUT)
        position.too_long += not position.passes
        if policy == "drop":
            return []
        ends = len(row) if policy == "split" else capacity
        pieces = [row.cut(first, min(capacity, len(row) - first)) for first in range(0, ends, capacity)]
        kept = [piece for piece in pieces if piece.supervised]
        position.emptied += 0 if position.passes else len(pieces) - len(kept)
        # The row counts as one, whichever of its pieces are left.
        return [replace(piece, begins=not number) for number, piece in enumerate(kept)]
