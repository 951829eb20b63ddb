"""Tokenised rows: places in flat arrays of tokens, which may be files of any size."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dumbo.data.columns import Columns, ColumnType, ColumnWriter
from dumbo.data.records import IGNORED, Example

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


RowIndex = int | tuple[int, int, int]
"""A row by its number, or a piece of one: the row, the piece's first token in it, and how many tokens it has."""


_MOST_DIGESTED = 1 << 30
"""Tokens that are read for a digest: some ten seconds."""


@dataclass(frozen=True)
class TokenBlock:
    """Tokens one after the other, in memory or mapped from files."""

    tokens: NDArray[np.int32]
    trained: NDArray[np.bool_]
    """Which of them are trained on."""

    def let_go(self) -> None:
        """After all of it was read: what is mapped from files need not stay in this process's memory."""
        for mapped in (self.tokens.base, self.trained.base):
            if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
                mapped.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class TokenDataset:
    """Rows, each a place in a block of tokens: to cut, choose or repeat rows copies no token.

    Indexing yields `{"input_ids", "labels"}`, int32 arrays of the row's length, and the row's columns by their names. A
    label is the token where it is trained and `IGNORED` elsewhere; the first token of a row never is, as nothing
    predicts it.
    """

    blocks: tuple[TokenBlock, ...]
    block: NDArray[np.int32]
    """Of each row, the number of its block."""
    start: NDArray[np.int64]
    length: NDArray[np.int32]
    source: NDArray[np.int32]
    """Of each row, the number of the entry under `datasets:` that it came from."""
    columns: tuple[Columns, ...] = ()
    """What there is beside the tokens; no row has a name in two of them."""

    @classmethod
    def from_examples(cls, examples: Iterable[Example], source: int = 0) -> TokenDataset:
        """Gather examples in memory; each must have at least one token."""
        from array import array

        import numpy as np

        tokens, trained, lengths, beside = array("i"), bytearray(), array("i"), ColumnWriter()
        for example in examples:
            beside.add(example)
            tokens.extend(example.input_ids)
            trained.extend(np.not_equal(example.labels, IGNORED).tobytes())
            lengths.append(len(example.input_ids))
        block = TokenBlock(
            np.frombuffer(tokens, np.int32) if tokens else np.zeros(0, np.int32),
            np.frombuffer(trained, np.bool_) if trained else np.zeros(0, np.bool_),
        )
        columns = beside.take()
        return cls.of_blocks([block], [np.array(lengths, np.int32)], source, beside.types, [columns])

    @classmethod
    def of_blocks(
        cls,
        blocks: Sequence[TokenBlock],
        lengths: Sequence[NDArray[np.int32]],
        source: int = 0,
        types: Mapping[str, ColumnType] | None = None,
        columns: Sequence[Mapping[str, NDArray[Any]]] = (),
    ) -> TokenDataset:
        """The rows of `blocks`, each full of rows that have its `lengths`; with `types`, there are `columns` of each
        block."""
        import numpy as np

        starts = [np.cumsum(length, dtype=np.int64) - length for length in lengths]
        numbers = [np.full(len(length), number, np.int32) for number, length in enumerate(lengths)]
        length = np.concatenate([*lengths, np.zeros(0, np.int32)])
        number = np.concatenate([*numbers, np.zeros(0, np.int32)])
        start = np.concatenate([*starts, np.zeros(0, np.int64)])
        beside = (Columns(types, tuple(columns), number, start),) if types else ()
        return cls(tuple(blocks), number, start, length, np.full(len(length), source, np.int32), beside)

    @classmethod
    def join(cls, datasets: Sequence[TokenDataset]) -> TokenDataset:
        """All rows of `datasets`, one data set after the other."""
        import numpy as np

        blocks: list[TokenBlock] = []
        numbers: list[NDArray[np.int32]] = []
        for dataset in datasets:
            numbers.append(dataset.block + np.int32(len(blocks)))
            blocks += dataset.blocks
        return cls(
            tuple(blocks),
            np.concatenate(numbers),
            np.concatenate([dataset.start for dataset in datasets]),
            np.concatenate([dataset.length for dataset in datasets]),
            np.concatenate([dataset.source for dataset in datasets]),
            Columns.join([dataset.columns for dataset in datasets], [len(dataset) for dataset in datasets]),
        )

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.length)

    def __getitem__(self, index: RowIndex) -> dict[str, Any]:
        """Row `index`, or a piece of one. A negative index is the filler row: two tokens, none of them trained."""
        import numpy as np

        index, first, length = index if isinstance(index, tuple) else (index, 0, None)
        if index < 0:
            ids = self.blocks[0].tokens[:2]
            beside = {name: kind.defaults(len(ids)) for name, kind in self.column_types.items()}
            return {"input_ids": ids, "labels": np.full_like(ids, IGNORED), **beside}
        ids, trained = self._parts(index)
        if length is not None:
            ids, trained = ids[first : first + length], trained[first : first + length]
        labels = np.where(trained, ids, np.int32(IGNORED))
        labels[0] = IGNORED
        return {"input_ids": ids, "labels": labels, **self._beside(index, first, len(ids))}

    def _beside(self, index: int, first: int, length: int) -> dict[str, NDArray[Any]]:
        """The columns of a row, of `length` tokens from its `first` on; those that it lacks with their defaults."""
        if not self.columns:
            return {}
        found = {name: values for one in self.columns for name, values in one.of_row(index, first, length).items()}
        return {
            name: found[name] if name in found else kind.defaults(length) for name, kind in self.column_types.items()
        }

    def _parts(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        block, start = self.blocks[self.block[index]], self.start[index]
        place = slice(start, start + self.length[index])
        return block.tokens[place], block.trained[place]

    @property
    def column_types(self) -> dict[str, ColumnType]:
        """Of all columns, by their names."""
        return {name: kind for columns in self.columns for name, kind in columns.types.items()}

    def with_columns(self, columns: Columns) -> TokenDataset:
        """With more columns of its rows.

        Raises:
            ValueError: there are columns of such a name, or they are not those of as many rows.
        """
        if self.column_types.keys() & columns.types.keys() or len(columns.block) != len(self):
            raise ValueError(f"columns {sorted(columns.types)} cannot be put beside {sorted(self.column_types)}")
        return replace(self, columns=(*self.columns, columns))

    @property
    def num_tokens(self) -> int:
        """All tokens."""
        return int(self.length.sum())

    @cached_property
    def supervised(self) -> NDArray[np.int32]:
        """Of each row, how many tokens are trained on."""
        import numpy as np

        counts = np.zeros(len(self), np.int32)
        for number, block in enumerate(self.blocks):
            rows = np.flatnonzero((self.block == number) & (self.length > 1))
            if len(rows):
                before = np.concatenate([[0], np.cumsum(block.trained, dtype=np.int32)])
                first = self.start[rows]  # which is not trained, as nothing predicts it
                counts[rows] = before[first + self.length[rows]] - before[first + 1]
                block.let_go()
        return counts

    @property
    def num_supervised(self) -> int:
        """The tokens that are trained on."""
        return int(self.supervised.sum())

    def digest(self, most_tokens: int = _MOST_DIGESTED) -> str:
        """Stands for all tokens, labels and columns in their order, wherever they lie: 128 bits, hexadecimal. Of more
        than `most_tokens`, for the lengths of all rows, and what rows at even distances have."""
        import hashlib

        import numpy as np

        digest = hashlib.blake2b(np.ascontiguousarray(self.length).tobytes(), digest_size=16)
        if self.num_tokens > most_tokens:
            every = -(-self.num_tokens // most_tokens)
            digest.update(self.select(range(0, len(self), every)).digest(self.num_tokens).encode())
            return digest.hexdigest()
        labels, ends = hashlib.blake2b(digest_size=16), self.start + self.length
        follows = (self.block[1:] == self.block[:-1]) & (self.start[1:] == ends[:-1])
        first = np.concatenate([[0], np.flatnonzero(~follows) + 1]) if len(self) else np.zeros(0, np.int64)
        last = np.concatenate([first[1:], [len(self)]]) - 1 if len(self) else first
        for begin, end in zip(first.tolist(), last.tolist(), strict=True):
            block, place = self.blocks[self.block[begin]], slice(int(self.start[begin]), int(ends[end]))
            digest.update(np.ascontiguousarray(block.tokens[place]).data)
            # By itself, so that it does not matter where one block ends and the next begins.
            labels.update(np.ascontiguousarray(block.trained[place]).data)
            if place == slice(0, len(block.tokens)):
                block.let_go()
        digest.update(labels.digest())
        if self.columns:
            digest.update(repr(sorted(self.column_types.items())).encode())
            for row, length in enumerate(self.length.tolist()):
                for _, values in sorted(self._beside(row, 0, length).items()):
                    digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(self.length.max(initial=0))

    def select(self, rows: Sequence[int] | NDArray[Any]) -> TokenDataset:
        """The given rows, in their order, as a data set of its own."""
        import numpy as np

        chosen = np.asarray(rows, np.int64)
        return TokenDataset(
            self.blocks,
            self.block[chosen],
            self.start[chosen],
            self.length[chosen],
            self.source[chosen],
            tuple(columns.select(chosen) for columns in self.columns),
        )

    def of_source(self, number: int) -> TokenDataset:
        """The same rows, as those of the entry `number` under `datasets:`."""
        import numpy as np

        return replace(self, source=np.full(len(self), number, np.int32))

    def cut(self, first: NDArray[np.int64], length: NDArray[np.int32]) -> TokenDataset:
        """Of each row the `length` tokens from its `first` on."""
        columns = tuple(columns.cut(first) for columns in self.columns)
        return replace(self, start=self.start + first, length=length, columns=columns)
