"""Dataset rows to batches of tensors, padded or packed."""

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
    """Puts all rows one after the other. Positions begin anew with each row: by them a model tells the rows apart, as
    no attention mask says that there is one text only."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return `input_ids`, `position_ids` and `labels`, int64 [1, tokens of all rows]."""
        import numpy as np
        import torch

        columns = {name: np.concatenate([row[name] for row in rows]) for name in ("input_ids", "labels")}
        columns["position_ids"] = np.concatenate([np.arange(len(row["input_ids"])) for row in rows])
        return {name: torch.as_tensor(values[None].astype(np.int64)) for name, values in columns.items()}
