"""Tokenised examples in flat arrays: four bytes per token and label, whatever the number of rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dumbo.data.records import IGNORED, Example

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class TokenDataset:
    """Examples one after the other: row `i` is `[offsets[i], offsets[i + 1])` of `tokens` and `labels`.

    `labels[j]` is the token at `j` where it is trained and `IGNORED` elsewhere; the first token of a row never is, as
    nothing predicts it. Indexing yields `{"input_ids", "labels"}`, int32 arrays of the row's length.
    """

    tokens: NDArray[np.int32]
    labels: NDArray[np.int32]
    offsets: NDArray[np.int64]

    @classmethod
    def from_examples(cls, examples: Iterable[Example]) -> TokenDataset:
        """Gather examples; each must have at least one token."""
        from array import array

        import numpy as np

        tokens, labels, offsets = array("i"), array("i"), array("q", [0])
        for example in examples:
            start = len(labels)
            tokens.extend(example.input_ids)
            labels.extend(example.labels)
            labels[start] = IGNORED
            offsets.append(len(tokens))
        return cls(
            np.frombuffer(tokens, np.int32) if tokens else np.zeros(0, np.int32),
            np.frombuffer(labels, np.int32) if labels else np.zeros(0, np.int32),
            np.frombuffer(offsets, np.int64),
        )

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Row `index`. A negative index is the filler row: two tokens, none of them trained."""
        if index < 0:
            return {"input_ids": self.tokens[:2], "labels": self.labels[:2] * 0 + IGNORED}
        row = slice(self.offsets[index], self.offsets[index + 1])
        return {"input_ids": self.tokens[row], "labels": self.labels[row]}

    @property
    def num_tokens(self) -> int:
        """All tokens."""
        return len(self.tokens)

    @property
    def num_supervised(self) -> int:
        """The tokens that are trained on."""
        return int((self.labels != IGNORED).sum())

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int((self.offsets[1:] - self.offsets[:-1]).max(initial=0))

    def select(self, rows: Sequence[int]) -> TokenDataset:
        """The given rows, in their order, as a data set of its own."""
        import numpy as np

        spans = [(int(self.offsets[row]), int(self.offsets[row + 1])) for row in rows]
        pieces = [np.arange(start, end) for start, end in spans]
        where = np.concatenate(pieces) if pieces else np.zeros(0, np.int64)
        offsets = np.cumsum([0, *(end - start for start, end in spans)], dtype=np.int64)
        return TokenDataset(self.tokens[where], self.labels[where], offsets)
