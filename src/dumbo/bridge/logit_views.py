"""Views of logits that nobody has computed: the same views of the hidden states that they would be made of."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor

from dumbo.kernels.linear_logits import LinearLogits


def viewed(linear: LinearLogits, shape: tuple[Any, ...]) -> LinearLogits | None:
    """In another shape, given as to `Tensor.view`; None where its last dimension is not the vocabulary."""
    if len(shape) == 1 and isinstance(shape[0], Tensor | list | tuple):
        shape = tuple(shape[0].shape) if isinstance(shape[0], Tensor) else tuple(shape[0])
    if not shape or not all(isinstance(length, int) for length in shape):
        return None
    places, last = prod(linear.hidden[0].shape[:-1]), shape[-1]
    if last not in (linear.size, -1) or (last == -1 and prod(shape[:-1]) != places):
        return None
    hidden = tuple(state.reshape(*shape[:-1], state.shape[-1]) for state in linear.hidden)
    return replace(linear, hidden=hidden)


def indexed(linear: LinearLogits, index: Any) -> LinearLogits | None:
    """Of some tokens all logits, or of all tokens the first logits; None for another index."""
    parts = index if isinstance(index, tuple) else (index,)
    if any(part is None for part in parts):
        return None
    dimensions = linear.hidden[0].dim()
    used = sum(part.dim() if _is_mask(part) else part is not Ellipsis for part in parts)
    if used > dimensions:
        return None
    if used == dimensions or (parts[-1] is not Ellipsis and any(part is Ellipsis for part in parts)):
        last = parts[-1]
        if not isinstance(last, slice) or last.start not in (None, 0) or last.step not in (None, 1):
            return None
        linear = _first(linear, len(range(linear.size)[last]))
        parts = (*parts[:-1], slice(None))
    return replace(linear, hidden=tuple(state[parts] for state in linear.hidden))


def _first(linear: LinearLogits, size: int) -> LinearLogits:
    if size == linear.size:
        return linear
    bias = None if linear.bias is None else linear.bias[:size]
    return replace(linear, weights=tuple(weight[:size] for weight in linear.weights), bias=bias)


def _is_mask(part: Any) -> bool:
    return isinstance(part, Tensor) and part.dtype == torch.bool
