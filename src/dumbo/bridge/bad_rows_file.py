"""The rows of a step that went wrong, written to a file for people."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dumbo.bridge.splitting import BOUNDARIES, documents_of, split_batch
from dumbo.data.records import IGNORED, Origin

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RowLoss = Callable[[Mapping[str, Any]], float]
"""A batch of one row -> its mean loss."""


def describe_rows(
    batches: Sequence[Mapping[str, Any]],
    origins: Sequence[Sequence[Origin | None]],
    tokenizer: PreTrainedTokenizerBase,
    row_loss: RowLoss,
) -> Iterator[dict[str, Any]]:
    """Of each row of `batches`: where it came from if `origins` says so, its tokens, loss and text."""
    for batch, of_batch in zip(batches, origins, strict=True):
        documents = documents_of(batch)
        singles = _singles(batch, len(documents))
        # Where a batch is not one row for one item, nobody knows which row is which.
        known: Sequence[Origin | None] = of_batch if len(of_batch) == len(documents) else [None] * len(documents)
        for document, single, origin in zip(documents, singles, known, strict=True):
            ids, labels = document["input_ids"], document["labels"]
            row: dict[str, Any] = {} if origin is None else {"file": origin.source, "row": origin.row}
            row |= {"tokens": len(ids), "trained": int((labels[1:] != IGNORED).sum())}
            loss = None if single is None else _loss(row_loss, single)
            if loss is not None:
                row["loss"] = loss if math.isfinite(loss) else str(loss)
            yield {**row, "text": tokenizer.decode(ids.tolist())}


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write `rows` as JSON lines, and say where they are, or why not."""
    try:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        file.write_text("".join(lines), encoding="utf-8")
    except OSError as error:
        return f"its rows could not be written to {file}: {error.strerror or error}"
    return f"its rows are in {file}"


def _singles(batch: Mapping[str, Any], count: int) -> Sequence[Mapping[str, Any] | None]:
    pieces = split_batch(batch, max(count - 1, 0).bit_length()) if BOUNDARIES not in batch else _one_by_one(batch)
    return pieces if len(pieces) == count else [None] * count


def _one_by_one(batch: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    # Documents of different lengths: halves in tokens may be any number of documents.
    pieces, before = [batch], 0
    while len(pieces) > before:
        before = len(pieces)
        pieces = [half for piece in pieces for half in split_batch(piece, 1)]
    return pieces


def _loss(row_loss: RowLoss, single: Mapping[str, Any]) -> float | None:
    try:
        with torch.no_grad():
            return float(row_loss(single))
    except Exception:  # The rows are worth having without it, and the run ends with its own error.
        return None
