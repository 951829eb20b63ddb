"""Batches cut into smaller ones of the same rows, padded or packed."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor

from dumbo.bridge.packing import packed_batch_inputs

BOUNDARIES = "cu_seq_lens_q"
"""What packed batches have, and no others."""


def split_batch(batch: Mapping[str, Any], halvings: int) -> list[Mapping[str, Any]]:
    """The batch cut in two `halvings` times over, in its order; what is one row or document stays whole.

    Tensors of a padded batch have the rows in their first dimension; padding at the end that none of the rows of a
    piece needs is cut off. A packed batch is cut between documents, as near to the middle as can be. A batch whose
    tensors differ in their number of rows is not cut.
    """
    pieces = [batch]
    for _ in range(halvings):
        pieces = [half for piece in pieces for half in _halves(piece)]
    return pieces


def documents_of(batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of each row or document: `input_ids` and `labels`, without padding."""
    ids, labels = batch["input_ids"], batch["labels"]
    if BOUNDARIES in batch:
        return [{"input_ids": ids[0, a:b], "labels": labels[0, a:b]} for a, b in pairwise(batch[BOUNDARIES].tolist())]
    if "attention_mask" not in batch:
        return [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]
    kept = batch["attention_mask"].bool()
    triples = zip(ids, labels, kept, strict=True)
    return [{"input_ids": row[is_kept], "labels": label[is_kept]} for row, label, is_kept in triples]


def describe_batch(batch: Mapping[str, Any]) -> str:
    """Rows and tokens of a batch, for messages."""
    rows, positions = batch["labels"].shape[:2]
    if BOUNDARIES in batch:
        return f"{len(batch[BOUNDARIES]) - 1} packed rows of {positions:,} tokens in all"
    return f"1 row of {positions:,} tokens" if rows == 1 else f"{rows} rows of up to {positions:,} tokens"


def _halves(batch: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return _packed_halves(batch) if BOUNDARIES in batch else _padded_halves(batch)


def _packed_halves(batch: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    boundaries = batch[BOUNDARIES].tolist()
    inner, total = boundaries[1:-1], boundaries[-1]
    if not inner:
        return [batch]
    middle = min(inner, key=lambda boundary: abs(2 * boundary - total))
    halves: list[Mapping[str, Any]] = []
    for first, last in ((0, middle), (middle, total)):
        ends = [boundary for boundary in boundaries if first <= boundary <= last]
        lengths = [end - begin for begin, end in pairwise(ends)]
        inputs = packed_batch_inputs(batch["input_ids"][:, first:last], lengths)
        halves.append({**inputs, "labels": batch["labels"][:, first:last]})
    return halves


def _padded_halves(batch: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    rows = batch["labels"].shape[0]
    tensors = [value for value in batch.values() if isinstance(value, Tensor)]
    if rows < 2 or any(tensor.ndim == 0 or tensor.shape[0] != rows for tensor in tensors):
        return [batch]
    middle = (rows + 1) // 2
    return [_trimmed(_rows(batch, 0, middle)), _trimmed(_rows(batch, middle, rows))]


def _rows(batch: Mapping[str, Any], first: int, last: int) -> dict[str, Any]:
    return {name: value[first:last] if isinstance(value, Tensor) else value for name, value in batch.items()}


def _trimmed(batch: dict[str, Any]) -> dict[str, Any]:
    """Without the last columns in which all rows have padding."""
    mask = batch.get("attention_mask")
    if mask is None or mask.ndim != 2 or not mask.any():
        return batch
    width = int(mask.any(dim=0).nonzero().max()) + 1
    columns = mask.shape[1]
    return {
        name: value[:, :width] if isinstance(value, Tensor) and value.ndim > 1 and value.shape[1] == columns else value
        for name, value in batch.items()
    }
