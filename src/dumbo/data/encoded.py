"""Rows as tokens, each with its place in its file; kept in memory or in files that are mapped into it."""

from __future__ import annotations

import json
import os
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumbo.data.columns import ColumnType, ColumnWriter
from dumbo.data.dataset import TokenBlock, TokenDataset
from dumbo.data.records import IGNORED, Example, Origin

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BLOCK_TOKENS = 1 << 23
"""Tokens of a block: few files for a large source, and little memory while one is filled (40 MiB)."""

_FACTS = "rows.json"
_ROW_FIELDS = (("length", "<i4"), ("file", "<i4"), ("row", "<i8"), ("digest", "<u8"))


@dataclass(frozen=True)
class EncodedRows:
    """The rows of one source."""

    dataset: TokenDataset
    files: tuple[str, ...]
    rows: NDArray[np.void]
    """Of each row: `length` in tokens, number of its `file`, its `row` in it, and a `digest` of its tokens and labels.
    """
    counts: Counter[str]
    """What the train format counted on its way."""
    largest_token: int = -1
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What was said when they were written."""

    def is_same(self, index: int, other: EncodedRows, at: int) -> bool:
        """Whether row `index` has the tokens and labels of row `at` of `other`."""
        mine, theirs = self.dataset[index], other.dataset[at]
        return all(mine[name].tobytes() == theirs[name].tobytes() for name in ("input_ids", "labels"))

    def origin(self, index: int) -> Origin:
        """Where row `index` came from."""
        row = self.rows[index]
        return Origin(self.files[row["file"]], int(row["row"]))


@dataclass(frozen=True)
class RowOrigins:
    """Finds where rows of data sets came from that were cut and chosen from the rows of sources."""

    encoded: Sequence[EncodedRows]
    """Of each source."""

    def find(self, dataset: TokenDataset, index: int) -> Origin | None:
        """Where row `index` of `dataset` came from; None where it has tokens of its own."""
        import numpy as np

        rows = self.encoded[int(dataset.source[index])]
        block = dataset.blocks[dataset.block[index]]
        number = next((place for place, theirs in enumerate(rows.dataset.blocks) if theirs is block), None)
        if number is None:
            return None
        of_block = np.flatnonzero(rows.dataset.block == number)
        before = int(np.searchsorted(rows.dataset.start[of_block], dataset.start[index], "right"))
        return rows.origin(int(of_block[before - 1]))


def trained_tokens(example: Example) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """The tokens of an example, and which of them it trains on.

    Raises:
        DataError: a label is another token than the one at its place.
    """
    import numpy as np

    ids, labels = np.asarray(example.input_ids, np.int32), np.asarray(example.labels, np.int32)
    trained = labels != IGNORED
    if (labels[trained] != ids[trained]).any():
        message = "a label is another token than the one at its place"
        raise example.origin.error(message, f"a label is the token itself where it is trained, else {IGNORED}")
    return ids, trained


@dataclass
class RowWriter:
    """Takes examples one after the other and gathers them in blocks: in files of `folder`, where it is given.

    What is flushed to a folder is safe: `resumed` goes on behind it, however the writer before has ended.
    """

    folder: Path | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    """What was said at the last flush; of a writer that goes on, by the one before."""
    _blocks: list[TokenBlock] = field(default_factory=list)
    _columns: list[dict[str, NDArray[Any]]] = field(default_factory=list)
    """Those of each block, where they are not in files."""
    _beside: ColumnWriter = field(default_factory=ColumnWriter)
    _column_blocks: list[list[str]] = field(default_factory=list)
    """Of each block, the names of the columns that it has."""
    _rows: list[NDArray[np.void]] = field(default_factory=list)
    """The rows of each block, where they are not in files."""
    _files: dict[str, int] = field(default_factory=dict)
    _counts: Counter[str] = field(default_factory=Counter)
    _tokens: array[int] = field(default_factory=lambda: array("i"))
    _trained: bytearray = field(default_factory=bytearray)
    _open_rows: list[tuple[int, int, int, int]] = field(default_factory=list)
    _rows_per_block: list[int] = field(default_factory=list)
    _largest: int = -1

    @classmethod
    def resumed(cls, folder: Path) -> RowWriter:
        """A writer that goes on behind what is whole in `folder`; from the beginning, where nothing is."""
        writer = cls(folder)
        try:
            facts: dict[str, Any] = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
            rows = _file_of_rows(folder)
            os.truncate(rows, sum(facts["rows_per_block"]) * _row_type().itemsize)
            _open(folder, facts)
        except (OSError, ValueError, KeyError, TypeError):
            writer.clear()
            return writer
        writer.facts, writer._largest = facts["facts"], facts["largest"]
        writer._files = {name: number for number, name in enumerate(facts["files"])}
        writer._counts, writer._rows_per_block = Counter(facts["counts"]), facts["rows_per_block"]
        writer._beside = ColumnWriter(_read_types(facts))
        writer._column_blocks = facts["column_blocks"]
        return writer

    @property
    def largest_token(self) -> int:
        """The largest of what was flushed; -1 where nothing was."""
        return self._largest

    def clear(self) -> None:
        """Remove what is in the folder; nothing is to be added behind that."""
        for file in self.folder.iterdir() if self.folder is not None else ():
            file.unlink()

    @property
    def is_full(self) -> bool:
        """Whether it is time to flush."""
        return len(self._tokens) >= BLOCK_TOKENS

    @property
    def num_rows(self) -> int:
        """Rows that were added."""
        return sum(self._rows_per_block) + len(self._open_rows)

    def add(self, example: Example) -> None:
        """Append an example.

        Raises:
            DataError: a label is another token than the one at its place.
        """
        ids, trained = trained_tokens(example)
        self._beside.add(example)
        trained[0] = False
        token_bytes, trained_bytes = ids.tobytes(), trained.tobytes()
        self._tokens.frombytes(token_bytes)
        self._trained += trained_bytes
        digest = int.from_bytes(blake2b(token_bytes + trained_bytes, digest_size=8).digest(), "little")
        file = self._files.setdefault(example.origin.source, len(self._files))
        self._open_rows.append((len(ids), file, example.origin.row, digest))
        if example.counts:
            self.add_counts(example.counts)

    def add_counts(self, counts: Mapping[str, int]) -> None:
        """Add to what the train format counted on its way."""
        self._counts.update(counts)

    def flush(self, facts: Mapping[str, Any]) -> None:
        """Close the block; with a folder, what was added up to now is in it, and `facts` with it."""
        import numpy as np

        self.facts = dict(facts)
        if self._open_rows:
            tokens, trained = np.frombuffer(self._tokens, np.int32), np.frombuffer(self._trained, np.bool_)
            rows = np.array(self._open_rows, _row_type())
            self._largest = max(self._largest, int(tokens.max()))
            columns = self._beside.take()
            if self.folder is None:
                self._blocks.append(TokenBlock(tokens, trained))
                self._columns.append(columns)
                self._rows.append(rows)
            else:
                number = len(self._rows_per_block)
                _write(_file(self.folder, number, "tokens"), tokens)
                _write(_file(self.folder, number, "trained"), trained)
                for name, values in columns.items():
                    _write(_column_file(self.folder, number, name), values)
                _write(_file_of_rows(self.folder), rows, "ab")
            self._column_blocks.append(sorted(columns))
            self._rows_per_block.append(len(rows))
            self._tokens, self._trained, self._open_rows = array("i"), bytearray(), []
        if self.folder is not None:
            written = {
                "rows_per_block": self._rows_per_block,
                "files": list(self._files),
                "counts": dict(self._counts),
                "largest": self._largest,
                "columns": {name: kind._asdict() for name, kind in self._beside.types.items()},
                "column_blocks": self._column_blocks,
                "facts": self.facts,
            }
            partial = self.folder / f"{_FACTS}.partial"
            partial.write_text(json.dumps(written), encoding="utf-8")
            partial.replace(self.folder / _FACTS)

    def finish(self, facts: Mapping[str, Any]) -> EncodedRows:
        """What was added; with a folder, everything that `read_rows` needs is in it."""
        import numpy as np

        self.flush(facts)
        if self.folder is not None:
            return read_rows(self.folder)
        lengths = [rows["length"] for rows in self._rows]
        whole = np.concatenate([*self._rows, np.zeros(0, _row_type())])
        dataset = TokenDataset.of_blocks(self._blocks, lengths, 0, self._beside.types, self._columns)
        return EncodedRows(dataset, tuple(self._files), whole, self._counts, self._largest, self.facts)


def read_rows(folder: Path) -> EncodedRows:
    """What a `RowWriter` left in `folder`; the tokens stay in their files until they are used.

    Raises:
        OSError, ValueError, KeyError, TypeError: there is something else in it.
    """
    return _open(folder, json.loads((folder / _FACTS).read_text(encoding="utf-8")))


def _open(folder: Path, facts: Mapping[str, Any]) -> EncodedRows:
    import numpy as np

    counts: list[int] = facts["rows_per_block"]
    rows: Any = np.zeros(0, _row_type())
    if sum(counts):
        rows = np.memmap(_file_of_rows(folder), _row_type(), "r")
    if len(rows) != sum(counts):
        raise ValueError("there are not as many rows as there should be")
    lengths = np.split(rows["length"], np.cumsum(counts)[:-1]) if counts else []
    blocks = [_map_block(folder, number) for number in range(len(counts))]
    for block, of_block in zip(blocks, lengths, strict=True):
        if not len(block.tokens) == len(block.trained) == of_block.sum():
            raise ValueError("the files do not fit together")
    types, names = _read_types(facts), facts["column_blocks"]
    if len(names) != len(blocks):
        raise ValueError("there are not as many columns as there should be")
    columns = [
        _map_columns(folder, number, names[number], types, len(block.tokens)) for number, block in enumerate(blocks)
    ]
    dataset = TokenDataset.of_blocks(blocks, lengths, 0, types, columns)
    return EncodedRows(dataset, tuple(facts["files"]), rows, Counter(facts["counts"]), facts["largest"], facts["facts"])


def _write(file: Path, values: NDArray[Any], mode: str = "wb") -> None:
    """Write and wait for the disk: what is said to be there must be there after a power cut too."""
    with file.open(mode) as stream:
        stream.write(values.tobytes())  # `tofile` does not tell that a disk is full.
        stream.flush()
        os.fsync(stream.fileno())


def _file_of_rows(folder: Path) -> Path:
    return folder / "rows"


def _map_block(folder: Path, number: int) -> TokenBlock:
    import numpy as np

    tokens = np.memmap(_file(folder, number, "tokens"), np.int32, "r")
    return TokenBlock(tokens, np.memmap(_file(folder, number, "trained"), np.bool_, "r"))


def _read_types(facts: Mapping[str, Any]) -> dict[str, ColumnType]:
    columns: dict[str, dict[str, Any]] = facts["columns"]
    return {name: ColumnType(kind["dtype"], tuple(kind["shape"]), kind["default"]) for name, kind in columns.items()}


def _map_columns(
    folder: Path, number: int, names: Sequence[str], types: Mapping[str, ColumnType], length: int
) -> dict[str, NDArray[Any]]:
    import numpy as np

    mapped: dict[str, NDArray[Any]] = {}
    for name in names:
        kind = types[name]
        values: NDArray[Any] = np.memmap(_column_file(folder, number, name), kind.dtype, "r")
        mapped[name] = values.reshape(length, *kind.shape)
    return mapped


def _column_file(folder: Path, number: int, name: str) -> Path:
    return _file(folder, number, f"column-{name}")


def _file(folder: Path, number: int, what: str) -> Path:
    return folder / f"{number:05}.{what}"


def _row_type() -> np.dtype[np.void]:
    import numpy as np

    return np.dtype(list(_ROW_FIELDS))
