"""Batches cut into smaller ones of the same rows, padded or packed."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor

from dumbo.bridge.packing import packed_batch_inputs

BOUNDARIES = "cu_seq_lens_q"
"""What packed batches have, and no others."""
_PADDED = frozenset({"input_ids", "attention_mask", "labels"})
"""What is known to have a column for each token."""


def split_batch(batch: Mapping[str, Any], halvings: int) -> list[Mapping[str, Any]]:
    """The batch cut in two `halvings` times over, in its order; what is one row or document stays whole.

    Rows must be separate (`CollatorPlugin.rows_are_separate`), which nothing in a batch tells. Tensors and lists of a
    padded batch have the rows in their first dimension; of one that has nothing else than `input_ids`,
    `attention_mask` and `labels`, padding at the end that none of the rows of a piece needs is cut off. A packed batch
    is cut between documents, as near to the middle as can be; its tensors are `[1, tokens, ...]`. Numbers and texts go
    with each piece. A batch that has anything else is not cut.
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
    made = packed_batch_inputs(batch["input_ids"], [end - begin for begin, end in pairwise(boundaries)]).keys()
    others = {name: value for name, value in batch.items() if name not in made}
    if not inner or not all(_is_packed(value, total) or _is_shared(value) for value in others.values()):
        return [batch]
    middle = min(inner, key=lambda boundary: abs(2 * boundary - total))
    halves: list[Mapping[str, Any]] = []
    for first, last in ((0, middle), (middle, total)):
        ends = [boundary for boundary in boundaries if first <= boundary <= last]
        lengths = [end - begin for begin, end in pairwise(ends)]
        inputs = packed_batch_inputs(batch["input_ids"][:, first:last], lengths)
        carried = {name: value if _is_shared(value) else value[:, first:last] for name, value in others.items()}
        halves.append({**inputs, **carried})
    return halves


def _padded_halves(batch: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    rows = batch["labels"].shape[0]
    if rows < 2 or not all(_has_rows(value, rows) or _is_shared(value) for value in batch.values()):
        return [batch]
    middle = (rows + 1) // 2
    return [_trimmed(_rows(batch, 0, middle)), _trimmed(_rows(batch, middle, rows))]


def _is_shared(value: Any) -> bool:
    """Whether it is of all rows alike."""
    return value is None or isinstance(value, bool | int | float | str)


def _has_rows(value: Any, rows: int) -> bool:
    if isinstance(value, Tensor):
        return value.ndim > 0 and value.shape[0] == rows
    return isinstance(value, list | tuple) and len(value) == rows


def _is_packed(value: Any, tokens: int) -> bool:
    return isinstance(value, Tensor) and value.shape[:2] == (1, tokens)


def _rows(batch: Mapping[str, Any], first: int, last: int) -> dict[str, Any]:
    return {name: value if _is_shared(value) else value[first:last] for name, value in batch.items()}


def _trimmed(batch: dict[str, Any]) -> dict[str, Any]:
    """Without the last columns in which all rows have padding."""
    mask = batch.get("attention_mask")
    # What else a batch has may be as wide by chance.
    if mask is None or mask.ndim != 2 or not batch.keys() <= _PADDED:
        return batch
    used = mask.any(dim=0).nonzero()
    width = int(used.max()) + 1 if len(used) else mask.shape[1]
    return {name: value[:, :width] for name, value in batch.items()}
