"""Rows as tokens, each with its place in its file; kept in memory or in files that are mapped into it."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

    def is_same(self, index: int, other: EncodedRows, at: int) -> bool:
        """Whether row `index` has the tokens and labels of row `at` of `other`."""
        mine, theirs = self.dataset[index], other.dataset[at]
        return all(mine[name].tobytes() == theirs[name].tobytes() for name in mine)

    def origin(self, index: int) -> Origin:
        """Where row `index` came from."""
        row = self.rows[index]
        return Origin(self.files[row["file"]], int(row["row"]))


@dataclass
class RowWriter:
    """Takes examples one after the other and gathers them in blocks: in files of `folder`, where it is given."""

    folder: Path | None = None
    _blocks: list[TokenBlock] = field(default_factory=list)
    _rows: list[NDArray[np.void]] = field(default_factory=list)
    _files: dict[str, int] = field(default_factory=dict)
    _counts: Counter[str] = field(default_factory=Counter)
    _tokens: array[int] = field(default_factory=lambda: array("i"))
    _trained: bytearray = field(default_factory=bytearray)
    _open_rows: list[tuple[int, int, int, int]] = field(default_factory=list)

    def add(self, example: Example) -> None:
        """Append an example.

        Raises:
            DataError: a label is another token than the one at its place.
        """
        import numpy as np

        ids, labels = np.asarray(example.input_ids, np.int32), np.asarray(example.labels, np.int32)
        trained = labels != IGNORED
        if not np.array_equal(labels[trained], ids[trained]):
            message = "a label is another token than the one at its place"
            raise example.origin.error(message, f"a label is the token itself where it is trained, else {IGNORED}")
        trained[0] = False
        token_bytes, trained_bytes = ids.tobytes(), trained.tobytes()
        self._tokens.frombytes(token_bytes)
        self._trained += trained_bytes
        digest = int.from_bytes(blake2b(token_bytes + trained_bytes, digest_size=8).digest(), "little")
        file = self._files.setdefault(example.origin.source, len(self._files))
        self._open_rows.append((len(ids), file, example.origin.row, digest))
        if example.counts:
            self._counts.update(example.counts)
        if len(self._tokens) >= BLOCK_TOKENS:
            self._close_block()

    def finish(self) -> EncodedRows:
        """What was added; with a folder, everything that `read_rows` needs is in it."""
        import numpy as np

        self._close_block()
        if self.folder is not None:
            facts = {"blocks": len(self._blocks), "files": list(self._files), "counts": dict(self._counts)}
            (self.folder / _FACTS).write_text(json.dumps(facts), encoding="utf-8")
        rows = np.concatenate([*self._rows, np.zeros(0, _row_type())])
        return _encoded(self._blocks, self._rows, tuple(self._files), rows, self._counts)

    def _close_block(self) -> None:
        import numpy as np

        if not self._open_rows:
            return
        tokens, trained = np.frombuffer(self._tokens, np.int32), np.frombuffer(self._trained, np.bool_)
        block, rows = TokenBlock(tokens, trained), np.array(self._open_rows, _row_type())
        if self.folder is not None:
            number = len(self._blocks)
            tokens.tofile(_file(self.folder, number, "tokens"))
            trained.tofile(_file(self.folder, number, "trained"))
            rows.tofile(_file(self.folder, number, "rows"))
            block = _map_block(self.folder, number)
        self._blocks.append(block)
        self._rows.append(rows)
        self._tokens, self._trained, self._open_rows = array("i"), bytearray(), []


def read_rows(folder: Path) -> EncodedRows:
    """What a `RowWriter` left in `folder`; the tokens stay in their files until they are used.

    Raises:
        OSError, ValueError, KeyError: there is something else in it.
    """
    import numpy as np

    facts: dict[str, Any] = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
    numbers = range(facts["blocks"])
    blocks = [_map_block(folder, number) for number in numbers]
    rows = [np.fromfile(_file(folder, number, "rows"), _row_type()) for number in numbers]
    for block, of_block in zip(blocks, rows, strict=True):
        if not len(block.tokens) == len(block.trained) == of_block["length"].sum():
            raise ValueError("the files do not fit together")
    whole = np.concatenate([*rows, np.zeros(0, _row_type())])
    return _encoded(blocks, rows, tuple(facts["files"]), whole, Counter(facts["counts"]))


def _encoded(
    blocks: list[TokenBlock],
    rows: list[NDArray[np.void]],
    files: tuple[str, ...],
    whole: NDArray[np.void],
    counts: Counter[str],
) -> EncodedRows:
    return EncodedRows(TokenDataset.of_blocks(blocks, [part["length"] for part in rows]), files, whole, counts)


def _map_block(folder: Path, number: int) -> TokenBlock:
    import numpy as np

    tokens = np.memmap(_file(folder, number, "tokens"), np.int32, "r")
    return TokenBlock(tokens, np.memmap(_file(folder, number, "trained"), np.bool_, "r"))


def _file(folder: Path, number: int, what: str) -> Path:
    return folder / f"{number:05}.{what}"


def _row_type() -> np.dtype[np.void]:
    import numpy as np

    return np.dtype(list(_ROW_FIELDS))
