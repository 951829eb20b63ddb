"""Dataset rows to a batch of tensors, padded or packed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dumbo.data.columns import ColumnType
from dumbo.data.records import IGNORED

if TYPE_CHECKING:
    from torch import Tensor

_TOKENS = frozenset({"input_ids", "labels"})


@dataclass(frozen=True)
class PaddingCollator:
    """Pads on the right to the longest row; padded positions are not attended to and not trained on."""

    pad_token_id: int
    columns: Mapping[str, ColumnType] = field(default_factory=dict)
    """What rows have beside their tokens, padded with the defaults that stand here, else with 0."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return `input_ids`, `attention_mask` and `labels`, int64 [rows, longest], and each column of the rows,
        [rows, longest, ...], in its own type."""
        import torch

        shape = (len(rows), max(len(row["input_ids"]) for row in rows))
        input_ids = torch.full(shape, self.pad_token_id)
        labels = torch.full(shape, IGNORED)
        attention_mask = torch.zeros(shape, dtype=torch.int64)
        for i, row in enumerate(rows):
            length = len(row["input_ids"])
            input_ids[i, :length] = torch.as_tensor(row["input_ids"].copy())
            labels[i, :length] = torch.as_tensor(row["labels"].copy())
            attention_mask[i, :length] = 1
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        return batch | {name: self._padded(name, rows, shape) for name in rows[0].keys() - _TOKENS}

    def _padded(self, name: str, rows: Sequence[Mapping[str, Any]], shape: tuple[int, int]) -> Tensor:
        import numpy as np
        import torch

        values = [row[name] for row in rows]
        default = self.columns[name].default if name in self.columns else 0
        padded = np.full((*shape, *values[0].shape[1:]), default, values[0].dtype)
        for i, of_row in enumerate(values):
            padded[i, : len(of_row)] = of_row
        return torch.from_numpy(padded)


@dataclass(frozen=True)
class PackedCollator:
    """Puts all documents of a batch one after the other into one row, whose boundaries go with it."""

    def __call__(self, documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return `labels`, int64 [1, tokens], what `packed_batch_inputs` says, and each column, [1, tokens, ...].

        The label of a document's first token is to be `IGNORED`: the token before it belongs to another document.
        """
        import numpy as np
        import torch

        from dumbo.bridge.packing import packed_batch_inputs

        input_ids, labels = (
            torch.from_numpy(np.concatenate([document[name] for document in documents]).astype(np.int64))[None]
            for name in ("input_ids", "labels")
        )
        lengths = [len(document["input_ids"]) for document in documents]
        beside = {
            name: torch.from_numpy(np.concatenate([document[name] for document in documents]))[None]
            for name in documents[0].keys() - _TOKENS
        }
        return {**packed_batch_inputs(input_ids, lengths), "labels": labels, **beside}
