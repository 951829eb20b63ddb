"""Held-out texts with masked tokens, for models that fill them in."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

from dumbo.data.records import IGNORED

if TYPE_CHECKING:
    from dumbo.data.dataset import TokenDataset


@dataclass(frozen=True)
class MaskedText:
    """A row's token ids, and which of them are masked."""

    input_ids: list[int]
    places: list[bool]


def masked_texts(dataset: TokenDataset, count: int, share: float, special: Collection[int]) -> list[MaskedText]:
    """Up to `count` rows, chosen at random and always the same ones, of each the same tokens masked.

    A `share` of those that are trained and not in `special` is masked, one at least; rows without any are left out.
    """
    chosen: Sequence[int] = range(len(dataset))
    if len(dataset) > count:
        chosen = sorted(Random(0).sample(chosen, count))
    found = []
    for index in chosen:
        row = dataset[index]
        ids = [int(token) for token in row["input_ids"]]
        known = zip(range(1, len(ids)), ids[1:], row["labels"][1:], strict=True)  # the first one is never trained
        maskable = [place for place, token, label in known if label != IGNORED and token not in special]
        if maskable:
            masked = set(Random(index).sample(maskable, max(1, int(share * len(maskable)))))
            found.append(MaskedText(ids, [place in masked for place in range(len(ids))]))
    return found
