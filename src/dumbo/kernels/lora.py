"""LoRA on frozen linear layers, alone or as a gated feed-forward block, with few activations kept for its gradients."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.function import once_differentiable

_Tensors = tuple[Tensor | None, ...]
_COUNT = 5
"""Tensors of a layer."""


class FrozenWeight(Protocol):
    """A weight that is not there as a matrix, such as a quantized one."""

    def product(self, x: Tensor) -> Tensor:
        """`x W^T + b` for x [..., I], without a gradient."""

    def times(self, gradient: Tensor) -> Tensor:
        """`gradient W` for a gradient [N, O]."""


@dataclass(frozen=True)
class LoraLayer:
    """`y = x W^T + b + s (x A^T B^T + c)`: a linear layer, and what LoRA (arXiv 2106.09685) adds to it.

    Without A and B it is the layer alone; with neither `weight` nor `frozen`, what is added alone.
    """

    weight: Tensor | None = None
    """W [O, I]; needs no gradient."""
    bias: Tensor | None = None
    """b [O]"""
    a: Tensor | None = None
    """A [r, I]"""
    b: Tensor | None = None
    """B [O, r]"""
    added_bias: Tensor | None = None
    """c [O]"""
    scaling: float = 1.0
    dropout: float = 0.0
    """Share of the inputs of A that is set to zero."""
    frozen: FrozenWeight | None = None
    """In place of W and b."""

    @property
    def tensors(self) -> _Tensors:
        """All tensors, for functions with gradients of their own."""
        return (self.weight, self.bias, self.a, self.b, self.added_bias)

    def replaced(self, tensors: Sequence[Tensor | None]) -> LoraLayer:
        """With these in place of `tensors`."""
        weight, bias, a, b, added_bias = tensors
        return replace(self, weight=weight, bias=bias, a=a, b=b, added_bias=added_bias)

    def bare(self) -> LoraLayer:
        """Without tensors: what is done with them."""
        return self.replaced((None,) * _COUNT)

    def draw(self, shape: Sequence[int], device: torch.device) -> Tensor | None:
        """Which inputs of A [*shape] dropout keeps, drawn as `F.dropout` draws them; None without dropout."""
        if self.a is None or not self.dropout:
            return None
        return F.dropout(torch.ones(tuple(shape), dtype=self.a.dtype, device=device), self.dropout) != 0


@dataclass(frozen=True)
class GatedBlock:
    """`down(activation(gate(x)) * up(x))`, the feed-forward part of most language models (arXiv 2002.05202)."""

    gate: LoraLayer
    up: LoraLayer
    down: LoraLayer
    activation: Callable[[Tensor], Tensor]
    """Without parameters and chance; called again in the backward pass."""

    @property
    def layers(self) -> tuple[LoraLayer, LoraLayer, LoraLayer]:
        """In the order in which they are called."""
        return self.gate, self.up, self.down

    def replaced(self, tensors: Sequence[Tensor | None]) -> GatedBlock:
        """With these in place of the tensors of its `layers`."""
        gate, up, down = (
            layer.replaced(tensors[place * _COUNT : (place + 1) * _COUNT]) for place, layer in enumerate(self.layers)
        )
        return GatedBlock(gate, up, down, self.activation)


class SharedCast:
    """Remembers the last tensor that was cast, so that layers with the same input keep one copy of it, not one each.

    The copy is forgotten with the tensor. Models are copied with it; the copy begins empty.
    """

    def __init__(self) -> None:
        self._source: weakref.ref[Tensor] | None = None
        self._version = 0
        self._cast: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedCast:
        return SharedCast()

    def of(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """`x` in `dtype`, without gradient."""
        known = self._cast is not None and self._source is not None and self._source() is x
        if known and self._version == x._version and self._cast is not None and self._cast.dtype == dtype:
            return self._cast
        self._source, self._version = weakref.ref(x, self._forget), x._version
        self._cast = x.detach().to(dtype)
        return self._cast

    def _forget(self, source: weakref.ref[Tensor]) -> None:
        if source is self._source:
            self._source, self._cast = None, None


def lora_linear(x: Tensor, layer: LoraLayer, shared: SharedCast, compute: torch.dtype | None) -> Tensor:
    """The output [..., O] of `layer` for x [..., I].

    For the backward pass x is kept, as `compute` has it where that is narrower, and with dropout a byte for each of its
    values. `x A^T` is made again, which costs r / O of the layer's work. With g for the gradient of y, N tokens:

        dx = g W + s (g B) A      dA = s (g B)^T x      dB = s g^T (x A^T)      db = sum_N g      dc = s sum_N g

    Types are those of PEFT: W x in the type of x, A and B in their own, the sum in that of W x.

    Args:
        compute: the type of autocast; None without it.
    """
    narrow = _narrow(x, (layer,), shared, compute)
    keep = layer.draw(x.shape, x.device)
    result: Tensor = _LoraLinear.apply(x, narrow, keep, layer.bare(), compute, *layer.tensors)  # type: ignore[no-untyped-call]
    return result


def gated_block(x: Tensor, block: GatedBlock, shared: SharedCast, compute: torch.dtype | None) -> Tensor:
    """The output [..., H] of `block` for x [..., H].

    For the backward pass x and the outputs of gate and up are kept, and with dropout a byte for each input of an A.
    PyTorch would keep the activation and its product with up, too, and with adapters of a type of their own, or
    autocast, a copy of the input for each layer: about twice as much. Activation and product are made again. With
    h = act(gate) * up and dh, the gradient of `down`'s input as `lora_linear` has it:

        d up = dh * act(gate)       d gate = dh * up * act'(gate)       dx = the sum of both layers' dx

    Args:
        compute: the type of autocast; None without it.
    """
    narrow = _narrow(x, block.layers, shared, compute)
    first, tensors = block.gate, tuple(tensor for layer in block.layers for tensor in layer.tensors)
    inner = block.down.a.shape[1] if block.down.a is not None else 0
    keeps = (
        first.draw(x.shape, x.device),
        block.up.draw(x.shape, x.device),
        block.down.draw((*x.shape[:-1], inner), x.device),
    )
    bare = block.replaced((None,) * len(tensors))
    result: Tensor = _GatedBlock.apply(x, narrow, *keeps, bare, compute, *tensors)  # type: ignore[no-untyped-call]
    return result


def _narrow(x: Tensor, layers: Sequence[LoraLayer], shared: SharedCast, compute: torch.dtype | None) -> Tensor | None:
    """The copy of `x` that is kept in its place: all layers cast it to that type before anything else."""
    if compute is None or x.dtype == torch.float64 or x.dtype.itemsize <= compute.itemsize:
        return None
    if any(layer.dropout or layer.frozen is not None for layer in layers):
        return None
    return shared.of(x, compute)


class _LoraLinear(torch.autograd.Function):
    """See `lora_linear`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        narrow: Tensor | None,
        keep: Tensor | None,
        layer: LoraLayer,
        compute: torch.dtype | None,
        *tensors: Tensor | None,
    ) -> Tensor:
        kept = x if narrow is None else narrow
        ctx.save_for_backward(kept, keep, *tensors)
        ctx.layer, ctx.compute, ctx.dtype = layer, compute, x.dtype
        with torch.autocast(x.device.type, enabled=False):
            return _forward(layer.replaced(tensors), kept, keep, compute)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        x, keep, *tensors = ctx.saved_tensors
        layer, needs = ctx.layer.replaced(tensors), ctx.needs_input_grad
        with torch.autocast(x.device.type, enabled=False):
            total, of_tensors = _backward(
                layer, _flat(gradient), x, keep, ctx.compute, (needs[0], *needs[5:]), None, ctx.dtype
            )
        return (None if total is None else total.view(x.shape), None, None, None, None, *of_tensors)


class _GatedBlock(torch.autograd.Function):
    """See `gated_block`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        narrow: Tensor | None,
        keep_gate: Tensor | None,
        keep_up: Tensor | None,
        keep_down: Tensor | None,
        block: GatedBlock,
        compute: torch.dtype | None,
        *tensors: Tensor | None,
    ) -> Tensor:
        kept = x if narrow is None else narrow
        ctx.block, ctx.compute, ctx.dtype = block, compute, x.dtype
        block = block.replaced(tensors)
        with torch.autocast(x.device.type, enabled=False):
            gate = _forward(block.gate, kept, keep_gate, compute)
            up = _forward(block.up, kept, keep_up, compute)
            ctx.save_for_backward(kept, gate, up, keep_gate, keep_up, keep_down, *tensors)
            hidden = _activated(block.activation, gate, compute) * up
            return _forward(block.down, hidden, keep_down, compute)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        x, gate, up, keep_gate, keep_up, keep_down, *tensors = ctx.saved_tensors
        block, compute, needs = ctx.block.replaced(tensors), ctx.compute, ctx.needs_input_grad
        needs_gate, needs_up, needs_down = (
            (needs[0], *needs[7 + place * _COUNT : 7 + (place + 1) * _COUNT]) for place in range(3)
        )
        flat_up = _flat(up)
        with torch.enable_grad():
            leaf = _flat(gate).detach().requires_grad_()
            activated = _activated(block.activation, leaf, compute)
        with torch.autocast(x.device.type, enabled=False):
            hidden = activated.detach() * flat_up
            of_hidden, of_down = _backward(
                block.down, _flat(gradient), hidden, keep_down, compute, (True, *needs_down[1:]), None, hidden.dtype
            )
            del hidden
            assert of_hidden is not None
            of_up = (of_hidden * activated.detach()).to(up.dtype)
            of_activated = of_hidden.mul_(flat_up).to(activated.dtype)
            (of_gate,) = torch.autograd.grad(activated, leaf, of_activated)
            del activated, leaf, of_hidden, of_activated
            total, in_gate = _backward(block.gate, of_gate, x, keep_gate, compute, needs_gate, None, ctx.dtype)
            del of_gate
            total, in_up = _backward(block.up, of_up, x, keep_up, compute, needs_up, total, ctx.dtype)
        of_x = None if total is None else total.view(x.shape)
        return (of_x, None, None, None, None, None, None, *in_gate, *in_up, *of_down)


def _activated(activation: Callable[[Tensor], Tensor], gate: Tensor, compute: torch.dtype | None) -> Tensor:
    """Under autocast as it was: some functions are computed in float32 then."""
    with torch.autocast(gate.device.type, dtype=compute, enabled=compute is not None):
        return activation(gate)


def _forward(layer: LoraLayer, x: Tensor, keep: Tensor | None, compute: torch.dtype | None) -> Tensor:
    """`y`, rounded wherever PEFT's own layers round."""
    y: Tensor | None = None
    if layer.frozen is not None:
        y = layer.frozen.product(x)
    elif layer.weight is not None:
        y = F.linear(_cast(x, compute), _cast(layer.weight, compute), _cast_some(layer.bias, compute))
    if layer.a is None or layer.b is None:
        assert y is not None
        return y
    narrow = F.linear(_input(layer, layer.a, x, keep, compute), _cast(layer.a, compute))
    added = F.linear(narrow, _cast(layer.b, compute), _cast_some(layer.added_bias, compute)).mul_(layer.scaling)
    if y is None:
        return added
    if layer.frozen is not None:
        return y + (added.to(y.dtype) if compute is None else added)
    return y.add_(added) if y.dtype == added.dtype else (y + added).to(y.dtype)


def _input(layer: LoraLayer, a: Tensor, x: Tensor, keep: Tensor | None, compute: torch.dtype | None) -> Tensor:
    """What A is multiplied with."""
    if keep is not None:
        return _cast(x.to(a.dtype) * _noise(layer, keep, a.dtype), compute)
    return _cast(x, compute) if compute is not None else x.to(a.dtype)


def _noise(layer: LoraLayer, keep: Tensor, dtype: torch.dtype) -> Tensor:
    return keep.to(dtype).div_(1 - layer.dropout)


def _backward(
    layer: LoraLayer,
    gradient: Tensor,
    x: Tensor,
    keep: Tensor | None,
    compute: torch.dtype | None,
    needs: Sequence[bool],
    total: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """The gradients of x [N, I] and of the layer's tensors, from the one of y [N, O].

    Args:
        needs: of which gradients are wanted: x, and the tensors.
        total: what the gradient of x is added to, in place.
        dtype: the type of the gradient of x.
    """
    x = _flat(x)
    of_bias = gradient.sum(0).to(layer.bias.dtype) if layer.bias is not None and needs[2] else None
    if needs[0] and layer.frozen is not None:
        total = _plus(total, layer.frozen.times(gradient), dtype)
    elif needs[0] and layer.weight is not None:
        weight = _cast(layer.weight, compute)
        total = _plus_product(total, gradient.to(weight.dtype), weight, dtype)
    if layer.a is None or layer.b is None:
        return total, [None, of_bias, None, None, None]
    a, b = _cast(layer.a, compute), _cast(layer.b, compute)
    keep = None if keep is None else _flat(keep)
    inputs, gradient = _input(layer, layer.a, x, keep, compute), gradient.to(b.dtype)
    of_narrow = (gradient @ b).mul_(layer.scaling)
    of_a = (of_narrow.T @ inputs).to(layer.a.dtype) if needs[3] else None
    of_b = (gradient.T @ F.linear(inputs, a)).mul_(layer.scaling).to(layer.b.dtype) if needs[4] else None
    of_added_bias = None
    if layer.added_bias is not None and needs[5]:
        of_added_bias = gradient.sum(0).mul_(layer.scaling).to(layer.added_bias.dtype)
    if needs[0] and keep is None:
        total = _plus_product(total, of_narrow, a, dtype)
    elif needs[0] and keep is not None:
        total = _plus(total, (of_narrow @ a).to(layer.a.dtype) * _noise(layer, keep, layer.a.dtype), dtype)
    return total, [None, of_bias, of_a, of_b, of_added_bias]


def _plus_product(total: Tensor | None, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    if total is not None and total.dtype == left.dtype:
        return total.addmm_(left, right)
    return _plus(total, left @ right, dtype)


def _plus(total: Tensor | None, more: Tensor, dtype: torch.dtype) -> Tensor:
    return more.to(dtype) if total is None else total.add_(more)


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def _cast(tensor: Tensor, compute: torch.dtype | None) -> Tensor:
    """As autocast does, which leaves float64 alone."""
    return tensor if compute is None or tensor.dtype == torch.float64 else tensor.to(compute)


def _cast_some(tensor: Tensor | None, compute: torch.dtype | None) -> Tensor | None:
    return None if tensor is None else _cast(tensor, compute)
