"""Logits of a linear layer that are made a tile at a time, and the gradients of what the tiles were used for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

_TILE_BYTES = 32 << 20
_TILE_BYTES_GPU = 512 << 20
"""What a tile of logits takes in float32: on a CPU larger ones leave its caches."""
_LEAST_ROWS = 128
"""Each tile costs a pass over the gradient of the weight: of fewer tokens that shows."""
_PRODUCT_BYTES = 16 << 20
"""Of a product that is added to a gradient of higher precision."""


class Step(NamedTuple):
    """Something that a model does to all of its logits."""

    kind: Literal["scale", "tanh", "cast"]
    value: Any = None
    """The factor, or the type."""


@dataclass(frozen=True)
class LinearLogits:
    """What makes logits: `finish(sum of hidden @ weight.T, + bias)`."""

    hidden: tuple[Tensor, ...]
    """[..., H] each, of the same leading dimensions. Several for a head with low-rank updates."""
    weights: tuple[Tensor, ...]
    """[V, H] each."""
    bias: Tensor | None = None
    """[V]"""
    steps: tuple[Step, ...] = ()
    """What is done to the logits, in this order."""
    dtype: torch.dtype | None = None
    """The type in which products are made (autocast's); None: that of the tensors."""

    @property
    def size(self) -> int:
        """Tokens of the vocabulary."""
        return int(self.weights[0].shape[0])

    @property
    def result_dtype(self) -> torch.dtype:
        """The type of the logits."""
        casts = [step.value for step in self.steps if step.kind == "cast"]
        return casts[-1] if casts else self.dtype or self.hidden[0].dtype

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, for functions with gradients of their own."""
        return (*self.hidden, *self.weights, *(() if self.bias is None else (self.bias,)))

    def replaced(self, tensors: Sequence[Tensor]) -> LinearLogits:
        """With these in place of `tensors`; without any, a description of what is done with them."""
        count = len(tensors) // 2
        bias = tensors[2 * count] if len(tensors) > 2 * count else None
        return replace(self, hidden=tuple(tensors[:count]), weights=tuple(tensors[count : 2 * count]), bias=bias)

    def rows(self, index: Any) -> LinearLogits:
        """Those of some places: `index` is applied to the leading dimensions, and those that are left are made one."""
        return replace(self, hidden=tuple(hidden[index].reshape(-1, hidden.shape[-1]) for hidden in self.hidden))

    def materialise(self) -> Tensor:
        """All logits, as the model would have made them; differentiable."""
        with torch.autocast(self.hidden[0].device.type, enabled=False):
            hidden, weights = ([_cast(t, self.dtype) for t in tensors] for tensors in (self.hidden, self.weights))
            z = _product(hidden, weights, _cast(self.bias, self.dtype))
            for kind, value in self.steps:
                z = z * value if kind == "scale" else torch.tanh(z) if kind == "tanh" else z.to(value)
            return z

    def scale_and_cap(self) -> tuple[float, float | None] | None:
        """What the steps are: a factor s, and where there is a soft cap c, c * tanh(s * z / c); None for others."""
        scales: list[float] = [1.0]
        for step in self.steps:
            if step.kind == "scale":
                scales[-1] *= step.value
            elif step.kind == "tanh":
                scales.append(1.0)
        if len(scales) > 2:
            return None
        return (scales[0], None) if len(scales) == 1 else (scales[0] * scales[1], scales[1])


class Sums(NamedTuple):
    """Gradients in the precision in which they were added up."""

    gradients: list[Tensor | None]
    types: list[torch.dtype]
    """Of the tensors that they belong to."""

    def scaled(self, factor: Tensor) -> list[Tensor | None]:
        """Each times the scalar `factor`, in its type; they are used up."""
        pairs = zip(self.gradients, self.types, strict=True)
        return [None if gradient is None else _scale(gradient, factor).to(dtype) for gradient, dtype in pairs]

    def rounded(self) -> list[Tensor | None]:
        """Each in its type."""
        pairs = zip(self.gradients, self.types, strict=True)
        return [None if gradient is None else gradient.to(dtype) for gradient, dtype in pairs]


class Coefficients(NamedTuple):
    """The gradient with respect to logits: `of_softmax * softmax + everywhere`, and `values` added at `ids`."""

    of_softmax: Tensor
    """[tokens]"""
    everywhere: Tensor | None
    """[tokens]"""
    ids: Tensor
    """[tokens, K]"""
    values: Tensor
    """[tokens, K]"""

    def of(self, tile: slice) -> Coefficients:
        """Those of some tokens."""
        everywhere = None if self.everywhere is None else self.everywhere[tile]
        return Coefficients(self.of_softmax[tile], everywhere, self.ids[tile], self.values[tile])


def tile_rows(num_tokens: int, size: int, device: torch.device) -> int:
    """Tokens of a tile: a power of two whose logits take at most what is sensible on the device."""
    budget = _TILE_BYTES if device.type == "cpu" else _TILE_BYTES_GPU
    rows = max(_LEAST_ROWS, budget // (4 * max(size, 1)))
    return max(1, min(num_tokens, 1 << (rows.bit_length() - 1)))


class Sweep:
    """Goes over tiles of logits, and gathers the gradients of what made them."""

    def __init__(
        self, logits: LinearLogits, needs: Sequence[bool], gradient_filter: float = 0.0, in_full: bool = False
    ) -> None:
        """`needs` says of which of `logits.tensors` gradients are wanted; `in_full`, that those of weights are added up
        in at least float32, too. The leading dimension is one."""
        self._steps, self._filter, self._in_full = logits.steps, gradient_filter, in_full
        self._compute = logits.dtype or logits.hidden[0].dtype
        self._hidden = [_cast(hidden, self._compute) for hidden in logits.hidden]
        self._weights = [_cast(weight, self._compute) for weight in logits.weights]
        self._bias = _cast(logits.bias, self._compute)
        self.precision = torch.promote_types(self._compute, torch.float32)
        self.num_tokens, self.size = len(self._hidden[0]), logits.size
        self._types = [tensor.dtype for tensor in logits.tensors]
        count = len(self._hidden)
        self._needs = list(needs)
        self.needs_gradients = any(needs)
        wide = [_is_wide(weight.dtype) for weight in logits.weights]
        needs_weights = self._needs[count : 2 * count]
        self.is_narrow = any(need and not is_wide for need, is_wide in zip(needs_weights, wide, strict=True))
        """Whether a weight in 16 bits needs a gradient, which cannot be added up in its own precision."""
        self._gradients: list[Tensor | None] = [None] * len(needs)
        if self.needs_gradients:
            self._gradients = [
                torch.zeros(tensor.shape, dtype=self._sum_type(place, tensor), device=tensor.device) if need else None
                for place, (tensor, need) in enumerate(zip(logits.tensors, needs, strict=True))
            ]

    def _sum_type(self, place: int, tensor: Tensor) -> torch.dtype:
        """Weights are as large as everything else together, and so are not raised: they are added up in tiles."""
        is_weight = len(self._hidden) <= place < 2 * len(self._hidden)
        return tensor.dtype if is_weight and not self._in_full else torch.promote_types(tensor.dtype, self.precision)

    def tiles(self, rows: int) -> Iterator[slice]:
        """The tokens of one tile after the other."""
        for start in range(0, self.num_tokens, rows):
            yield slice(start, min(start + rows, self.num_tokens))

    def logits(self, tile: slice, columns: slice = slice(None)) -> tuple[Tensor, list[Tensor]]:
        """A tile of logits in at least float32, which is the caller's, and what its gradient needs."""
        bias = None if self._bias is None else self._bias[columns]
        z = _product([hidden[tile] for hidden in self._hidden], [weight[columns] for weight in self._weights], bias)
        kept: list[Tensor] = []
        for kind, value in self._steps:
            if kind == "tanh":
                z = z.tanh_()
                kept.append(z)
            elif kind == "cast":
                z = z.to(value)
            else:
                z = z * value if kept and z is kept[-1] else z.mul_(value)
        z = z.to(self.precision)
        return z.clone() if kept and z is kept[-1] else z, kept

    def add(self, tile: slice, softmax: Tensor, kept: Sequence[Tensor], at: Coefficients) -> None:
        """Add the gradients of a tile; `softmax` [rows, vocabulary] is used up."""
        gz = softmax.mul_(at.of_softmax[:, None])
        if at.everywhere is not None:
            gz.add_(at.everywhere[:, None])
        gz.scatter_add_(-1, at.ids, at.values.to(gz.dtype))
        self._add_products(tile, slice(None), self._before_steps(gz, kept))

    def add_gradient(self, tile: slice, gradient: Tensor, kept: Sequence[Tensor]) -> None:
        """Add the gradients of a tile, of what its logits have, [rows, vocabulary]; that is used up."""
        self._add_products(tile, slice(None), self._before_steps(gradient, kept))

    def add_by_vocabulary(self, lse: Tensor, at: Coefficients, rows: int) -> None:
        """Add all gradients, by tiles of the vocabulary: each weight's is a sum over all tokens at once, rounded once.

        `lse` [tokens] is the logarithm of the sums of exponentials; tiles are as large as those of `rows` tokens.
        """
        width = max(rows * self.size // max(self.num_tokens, 1), 1)
        for first in range(0, self.size, width):
            columns = slice(first, min(first + width, self.size))
            z, kept = self.logits(slice(None), columns)
            gz = z.sub_(lse[:, None]).exp_().mul_(at.of_softmax[:, None])
            if at.everywhere is not None:
                gz.add_(at.everywhere[:, None])
            is_here = (at.ids >= first) & (at.ids < columns.stop)
            values = at.values.to(gz.dtype) * is_here
            gz.scatter_add_(-1, torch.where(is_here, at.ids - first, 0), values)
            self._add_products(slice(None), columns, self._before_steps(gz, kept))

    def sums(self) -> Sums:
        """The gradients so far; they are given away."""
        sums, self._gradients = Sums(self._gradients, self._types), [None] * len(self._types)
        return sums

    def _before_steps(self, gz: Tensor, kept: Sequence[Tensor]) -> Tensor:
        """The gradient with respect to what the layer makes, of that with respect to the logits."""
        remaining = list(kept)
        for kind, value in reversed(self._steps):
            if kind == "scale":
                gz.mul_(value)
            elif kind == "tanh":
                y = remaining.pop().to(gz.dtype)
                gz.addcmul_(gz * y, y, value=-1)
        return gz

    def _add_products(self, tile: slice, columns: slice, gz: Tensor) -> None:
        count = len(self._hidden)
        if self._bias is not None and self._needs[-1]:
            self._gradients[-1][columns] += gz.sum(0)  # type: ignore[index]
        chosen: Any = columns
        if self._filter and gz.numel():
            large = (gz.abs().amax(0) >= self._filter).nonzero()[:, 0]
            gz, chosen = gz[:, large], large + (columns.start or 0)
        gz = gz.to(self._compute)
        for place, (hidden, weight) in enumerate(zip(self._hidden, self._weights, strict=True)):
            of_hidden, of_weight = self._gradients[place], self._gradients[count + place]
            if of_hidden is not None:
                of_hidden[tile] += gz @ weight[chosen]
            if of_weight is not None:
                _add_transposed_product(of_weight, chosen, gz, hidden[tile])


def _add_transposed_product(total: Tensor, rows: Any, left: Tensor, right: Tensor) -> None:
    """Add `left.T @ right` to `total[rows]`."""
    if isinstance(rows, Tensor):
        total.index_add_(0, rows, (left.T @ right).to(total.dtype))
    elif total.dtype == left.dtype:
        total[rows].addmm_(left.T, right)
    else:
        part = total[rows]
        width = max(_PRODUCT_BYTES // (right.shape[-1] * right.element_size()), 1)
        for first in range(0, len(part), width):
            part[first : first + width] += left[:, first : first + width].T @ right


def _scale(gradient: Tensor, factor: Tensor) -> Tensor:
    """`gradient` times `factor`, in place. In 16 bits `factor` itself would be rounded, and all of it be as wrong."""
    if torch.promote_types(gradient.dtype, factor.dtype) == gradient.dtype:
        return gradient.mul_(factor)
    height = max(_PRODUCT_BYTES // (4 * max(gradient[:1].numel(), 1)), 1)
    for part in torch.split(gradient, height):
        part.copy_(part.to(factor.dtype).mul_(factor))
    return gradient


def _product(hidden: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    z = F.linear(hidden[0], weights[0], bias)
    for more, weight in zip(hidden[1:], weights[1:], strict=True):
        z = z + F.linear(more, weight)
    return z


def _cast(tensor: Any, dtype: torch.dtype | None) -> Any:
    return tensor if tensor is None or dtype is None else tensor.to(dtype)


def _is_wide(dtype: torch.dtype) -> bool:
    return torch.promote_types(dtype, torch.float32) == dtype
