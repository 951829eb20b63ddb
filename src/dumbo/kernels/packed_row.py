"""Which documents lie in a packed row, which tokens each of them may see, and how they are put side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

WASTE = 2**18
"""Multiplications by which padding may grow a document's scores, per product: about what a call of its own costs.

On one core a call costs some 0.1 ms, forward and backward, as do scores of 23 by 23 for a width of 512.
"""

SPARE = 64
"""Tokens of padding in a group that recurrent layers may have in any case: they compute in chunks of about as many."""

Allows = Callable[[Tensor, Tensor], Tensor]
"""Whether the query at each of some positions `[N]` sees the key at the other `[N]`; bool `[N]`."""


@dataclass(frozen=True)
class Pattern:
    """Which tokens of its own document a token sees."""

    causal: bool
    window: int | None = None
    """Causal: as many tokens, itself among them. Bidirectional: as many to each side. None: all."""

    def allowed(self, length: int, device: torch.device) -> Tensor | None:
        """Bool `[length, length]`, query by key; None where `causal` alone says it all."""
        if self.window is None or self.window >= length:
            return None
        place = torch.arange(length, device=device)
        back = place[:, None] - place[None, :]
        if self.causal:
            return (back >= 0) & (back < self.window)
        return back.abs() <= self.window


@dataclass(frozen=True)
class Group:
    """Documents that are computed together: rows `[first, end)` of the layout."""

    first: int
    count: int
    length: int

    @property
    def end(self) -> int:
        """Behind its last row."""
        return self.first + self.count * self.length


@dataclass(frozen=True)
class Layout:
    """Documents ordered by length, those of a group padded on the right to its longest."""

    groups: tuple[Group, ...]
    size: int
    places: Tensor
    """Where each token of the packed row lies, int64 `[T]`."""
    is_identity: bool
    """Whether the layout is the packed row itself."""


class PackedRow:
    """The documents of one packed row, by length, in their order; layouts are made once for all layers."""

    def __init__(self, lengths: tuple[int, ...], device: torch.device) -> None:
        self.lengths, self.device = lengths, device
        self.layout = lru_cache(maxsize=8)(self._layout)
        self.block_masks: dict[Pattern, Any] = {}

    @classmethod
    def from_boundaries(cls, boundaries: Tensor, total: int) -> PackedRow:
        """`boundaries` is 0, the end of the first document, ..., the end of the last: `[documents + 1]`.

        Raises:
            ValueError: they are not those of documents that fill `total` tokens.
        """
        ends = boundaries.tolist()
        lengths = tuple(end - start for start, end in zip(ends, ends[1:], strict=False))
        if boundaries.ndim != 1 or not lengths or ends[0] != 0 or ends[-1] != total or min(lengths) < 1:
            raise ValueError(f"{ends} are not the boundaries of documents in a row of {total} tokens")
        return cls(lengths, boundaries.device)

    @cached_property
    def boundaries(self) -> Tensor:
        """Int32 `[documents + 1]`."""
        return torch.tensor([0, *self.lengths], device=self.device).cumsum(0).to(torch.int32)

    @cached_property
    def document_of(self) -> Tensor:
        """The number of each token's document, int64 `[T]`."""
        lengths = torch.tensor(self.lengths, device=self.device)
        return torch.repeat_interleave(torch.arange(len(self.lengths), device=self.device), lengths)

    def recognise(self, allows: Allows, local_size: int | None) -> Pattern | None:
        """The pattern that `allows` follows inside of the documents; None for one that is none of ours.

        It is asked for each token about its neighbours, the edges of its window and of its document, and the middle.
        `local_size` is the size of the window, if there is one.
        """
        place = torch.arange(sum(self.lengths), device=self.device)
        start = self.boundaries[:-1].long()[self.document_of]
        last = self.boundaries[1:].long()[self.document_of] - 1
        ahead = allows(place, torch.minimum(place + 1, last))[place < last]
        causal = not bool(ahead.any())
        for window in dict.fromkeys((None, local_size)):
            left = start if window is None else torch.maximum(start, place - (window - 1 if causal else window))
            right = place if causal else last if window is None else torch.minimum(last, place + window)
            seen = [left, right, (left + place) // 2, (right + place) // 2, torch.maximum(start, place - 1)]
            seen = seen if window is None or window > 1 else seen[:2]
            unseen = [(left - 1, left > start), (right + 1, right < last)]
            if all(bool(allows(place, key).all()) for key in seen) and not any(
                bool(allows(place[outside], key[outside]).any()) for key, outside in unseen
            ):
                return Pattern(causal, window)
        return None

    @cached_property
    def sequences(self) -> Layout:
        """The layout for layers that read a document from its first token to its last, where padding comes behind.

        Documents of a group differ in length by a factor of two at most, or have little padding in all. So not much
        more is computed for padding than for tokens, and all groups together have at most twice as many steps, one
        after the other, as the longest document.
        """

        def pads(group: Group, length: int) -> bool:
            return group.length <= 2 * length or (group.count + 1) * (group.length - length) <= SPARE

        return self._grouped(pads)

    def _layout(self, width: int, causal: bool) -> Layout:
        """Groups for scores of heads times head size `width`; only of equal lengths where padding would be seen."""

        def pads(group: Group, length: int) -> bool:
            return causal and (group.length**2 - length**2) * width <= WASTE

        return self._grouped(pads)

    def _grouped(self, pads: Callable[[Group, int], bool]) -> Layout:
        """Documents of equal lengths together, and those that may be padded as a group's next, by their length."""
        order = sorted(range(len(self.lengths)), key=lambda document: -self.lengths[document])
        groups: list[Group] = []
        first_of: dict[int, int] = {}
        end = 0
        for document in order:
            length = self.lengths[document]
            if groups and (groups[-1].length == length or pads(groups[-1], length)):
                groups[-1] = Group(groups[-1].first, groups[-1].count + 1, groups[-1].length)
            else:
                groups.append(Group(end, 1, length))
            first_of[document] = end
            end += groups[-1].length
        firsts = torch.tensor([first_of[document] for document in range(len(order))], device=self.device)
        shift = (firsts - self.boundaries[:-1])[self.document_of]
        is_identity = end == len(shift) and not bool(shift.any())
        return Layout(tuple(groups), end, torch.arange(len(shift), device=self.device) + shift, is_identity)


def lay_out(tokens: Tensor, layout: Layout) -> list[Tensor]:
    """`[T, ...]` as one `[count, length, ...]` for each group, zeros where no token is."""
    rows = tokens if layout.is_identity else _spread(tokens, layout.places, layout.size)
    return [
        rows[group.first : group.end].reshape(group.count, group.length, *rows.shape[1:]) for group in layout.groups
    ]


def take_back(groups: Sequence[Tensor], layout: Layout) -> Tensor:
    """`[T, ...]` from `[count, length, ...]` of each group: the opposite of `lay_out`."""
    pieces = [group.flatten(0, 1) for group in groups]
    rows = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
    if layout.is_identity:
        return rows
    tokens: Tensor = _Gather.apply(rows, layout.places)  # type: ignore[no-untyped-call]
    return tokens


def as_allows(mask_function: Callable[..., Any], device: torch.device) -> Allows:
    """A function of batch, head, query and key positions, as one of query and key positions alone."""
    first = torch.zeros(1, dtype=torch.int64, device=device)

    def allows(queries: Tensor, keys: Tensor) -> Tensor:
        answer: Tensor = mask_function(first, first, queries, keys)
        return answer.expand(queries.shape)

    return allows


def _spread(tokens: Tensor, places: Tensor, size: int) -> Tensor:
    return tokens.new_zeros(size, *tokens.shape[1:]).index_copy(0, places, tokens)


class _Gather(torch.autograd.Function):
    """Rows at some places, each of which is taken once: the gradient is copied, where PyTorch's would be added up."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor) -> Tensor:
        """`rows[places]`."""
        ctx.save_for_backward(places)
        ctx.size = rows.shape[0]
        return rows.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The gradients at their places, zeros elsewhere."""
        (places,) = ctx.saved_tensors
        return _spread(gradients[0], places, ctx.size), None
