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
    row_loss: RowLoss | None,
) -> Iterator[dict[str, Any]]:
    """Of each row of `batches`: where it came from if `origins` says so, its tokens, loss and text.

    Of a batch of which that cannot be told (a plugin makes what it wants): where the items came from that it was made
    of, and why not. Without a `row_loss`, where rows cannot be trained apart, there are no losses.
    """
    for batch, of_batch in zip(batches, origins, strict=True):
        try:
            yield from list(_rows_of(batch, of_batch, tokenizer, row_loss))
        except Exception as error:  # The run is to end with its own error, and not with one of this file.
            reason = f"the batch cannot be told apart into rows of tokens ({type(error).__name__}: {error})"
            for origin in of_batch or [None]:
                yield {**_place(origin), "not_described": reason}


def _rows_of(
    batch: Mapping[str, Any],
    origins: Sequence[Origin | None],
    tokenizer: PreTrainedTokenizerBase,
    row_loss: RowLoss | None,
) -> Iterator[dict[str, Any]]:
    documents = documents_of(batch)
    singles = _singles(batch, len(documents)) if row_loss is not None else [None] * len(documents)
    # Where a batch is not one row for one item, nobody knows which row is which.
    known: Sequence[Origin | None] = origins if len(origins) == len(documents) else [None] * len(documents)
    for document, single, origin in zip(documents, singles, known, strict=True):
        ids, labels = document["input_ids"], document["labels"]
        row = _place(origin) | {"tokens": len(ids), "trained": int((labels[1:] != IGNORED).sum())}
        loss = None if single is None or row_loss is None else _loss(row_loss, single)
        if loss is not None:
            row["loss"] = loss if math.isfinite(loss) else str(loss)
        yield {**row, "text": tokenizer.decode(ids.tolist())}


def _place(origin: Origin | None) -> dict[str, Any]:
    return {} if origin is None else {"file": origin.source, "row": origin.row}


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write `rows` as JSON lines, and say where they are, or why not."""
    try:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        file.write_text("".join(lines), encoding="utf-8")
    except (OSError, TypeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return f"its rows could not be written to {file}: {reason}"
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
