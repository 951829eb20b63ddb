"""Columns beside tokens: a value, or a row of values, for each token of a row, such as its weight in the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from dumbo.errors import RunError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dumbo.data.records import Example

TAKEN = frozenset({"input_ids", "labels", "attention_mask", "position_ids", "seq_idx", "use_cache"})
"""What batches have under these names is something else."""


class ColumnType(NamedTuple):
    """What all values of a column have in common."""

    dtype: str
    """As NumPy writes it: `<f4`."""
    shape: tuple[int, ...] = ()
    """Of what there is for one token; (): one number."""
    default: float = 0.0
    """The value of tokens whose rows do not have the column, and of padding."""

    def defaults(self, length: int) -> NDArray[Any]:
        """What `length` tokens have whose row does not have the column."""
        import numpy as np

        return np.full((length, *self.shape), self.default, self.dtype)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of one example."""

    values: NDArray[Any]
    """[tokens, ...]"""
    default: float = 0.0
    """The value where rows of the same data set do not have the column; all that have it say the same."""

    @property
    def type(self) -> ColumnType:
        """What its values have in common."""
        return ColumnType(self.values.dtype.str, self.values.shape[1:], self.default)


def column_fault(example: Example) -> str:
    """What is wrong with the columns that a train format made, if anything."""
    for name, column in example.columns.items():
        values: Any = getattr(column, "values", None)
        if not isinstance(column, Column) or getattr(values, "dtype", None) is None or values.dtype.kind not in "biuf":
            return f"a column '{name}' that is no Column of an array of numbers"
        if name in TAKEN or not name.isidentifier():
            return f"a column '{name}', which cannot have this name"
        if values.ndim < 1 or len(values) != len(example.input_ids):
            return f"{len(example.input_ids)} tokens and a column '{name}' of the shape {list(values.shape)}"
    return ""


@dataclass
class ColumnWriter:
    """Gathers the columns of examples that are added one after the other, in blocks."""

    types: dict[str, ColumnType] = field(default_factory=dict)
    """Of all columns so far, in this block or in those before."""
    _values: dict[str, list[tuple[int, NDArray[Any]]]] = field(default_factory=dict)
    """Of this block: the place of an example's first token, and what it has."""
    _length: int = 0

    def add(self, example: Example) -> None:
        """Append what an example has.

        Raises:
            DataError: it has a column of another type than the examples before.
        """
        for name, column in example.columns.items():
            known = self.types.setdefault(name, column.type)
            if column.type != known:
                message = f"its column '{name}' has {_described(column.type)}, and rows before it {_described(known)}"
                raise example.origin.error(message)
            self._values.setdefault(name, []).append((self._length, column.values))
        self._length += len(example.input_ids)

    def take(self) -> dict[str, NDArray[Any]]:
        """The columns of the block, [tokens of it, ...]; the next one begins."""
        taken = {}
        for name, parts in self._values.items():
            taken[name] = self.types[name].defaults(self._length)
            for first, values in parts:
                taken[name][first : first + len(values)] = values
        self._values, self._length = {}, 0
        return taken


@dataclass(frozen=True)
class Columns:
    """Some columns of a data set: of each of its rows, where in which block its values are."""

    types: Mapping[str, ColumnType]
    blocks: tuple[Mapping[str, NDArray[Any]], ...]
    """Each with [tokens of it, ...] by the names of columns; a block may lack some."""
    block: NDArray[np.int32]
    """Of each row, the number of its block; -1: it is in none."""
    start: NDArray[np.int64]
    """Of each row, the place of its first token."""

    @classmethod
    def of_rows(
        cls, types: Mapping[str, ColumnType], values: Mapping[str, NDArray[Any]], lengths: NDArray[np.int32]
    ) -> Columns:
        """Those of rows of `lengths`, whose `values` follow each other without a gap."""
        import numpy as np

        ends = np.cumsum(lengths, dtype=np.int64)
        return cls(types, (values,), np.zeros(len(lengths), np.int32), ends - lengths)

    def of_row(self, index: int, first: int, length: int) -> dict[str, NDArray[Any]]:
        """Those that a row has, of `length` tokens from its `first` on."""
        number = int(self.block[index])
        block = self.blocks[number] if number >= 0 else {}
        place = slice(int(self.start[index]) + first, int(self.start[index]) + first + length)
        return {name: values[place] for name, values in block.items()}

    def select(self, chosen: NDArray[np.int64]) -> Columns:
        """Those of the given rows, in their order."""
        return replace(self, block=self.block[chosen], start=self.start[chosen])

    def cut(self, first: NDArray[np.int64]) -> Columns:
        """With each row beginning at its token `first`."""
        return replace(self, start=self.start + first)

    @staticmethod
    def join(parts: Sequence[tuple[Columns, ...]], counts: Sequence[int]) -> tuple[Columns, ...]:
        """The columns of data sets of `counts` rows, one after the other; where one lacks some, it has the defaults.

        Raises:
            RunError: two data sets have different columns of one name.
        """
        import numpy as np

        agreed: dict[str, ColumnType] = {}
        found: list[Columns] = []
        total = sum(counts)
        before = 0
        for part, count in zip(parts, counts, strict=True):
            for columns in part:
                _agree(agreed, columns.types)
                block, start = np.full(total, -1, np.int32), np.zeros(total, np.int64)
                block[before : before + count], start[before : before + count] = columns.block, columns.start
                found.append(replace(columns, block=block, start=start))
            before += count
        return tuple(_merged(found))


def _merged(found: Sequence[Columns]) -> list[Columns]:
    """With those made one that have no row in common."""
    import numpy as np

    merged: list[Columns] = []
    for columns in found:
        here = columns.block >= 0
        place = next((at for at, one in enumerate(merged) if not (here & (one.block >= 0)).any()), len(merged))
        if place == len(merged):
            merged.append(columns)
            continue
        one = merged[place]
        block = np.where(here, columns.block + np.int32(len(one.blocks)), one.block)
        start = np.where(here, columns.start, one.start)
        merged[place] = Columns({**one.types, **columns.types}, one.blocks + columns.blocks, block, start)
    return merged


def _agree(agreed: dict[str, ColumnType], types: Mapping[str, ColumnType]) -> None:
    for name, kind in types.items():
        known = agreed.setdefault(name, kind)
        if known != kind:
            message = f"one source has {_described(known)} in the column '{name}', and another one {_described(kind)}"
            raise RunError(message)


def _described(kind: ColumnType) -> str:
    """Such as `8 values of float32 for each token (default 0)`."""
    import numpy as np

    count = int(np.prod(kind.shape, dtype=np.int64))
    what = f"{count} values" if kind.shape else "a value"
    return f"{what} of {np.dtype(kind.dtype)} for each token (default {kind.default:g})"
