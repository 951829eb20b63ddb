"""Dataset rows to a batch of tensors, padded or packed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dumbo.data.records import IGNORED

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class PaddingCollator:
    """Pads on the right to the longest row; padded positions are not attended to and not trained on."""

    pad_token_id: int

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return `input_ids`, `attention_mask` and `labels`, int64 [rows, longest]."""
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
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


@dataclass(frozen=True)
class PackedCollator:
    """Puts all documents of a batch one after the other into one row, whose boundaries go with it."""

    def __call__(self, documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return `labels`, int64 [1, tokens], and what `packed_batch_inputs` says.

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
        return {**packed_batch_inputs(input_ids, lengths), "labels": labels}
