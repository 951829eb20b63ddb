"""Any loss that is a sum over tokens, of logits that a linear layer would make, a tile of tokens at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dumbo.kernels.linear_logits import LinearLogits, Sweep, tile_rows

TileSums = Callable[[Tensor, slice], Tensor]
"""(logits of some tokens, [tokens, vocabulary], in at least float32; which ones) -> sums over these tokens, [sums]."""


def linear_sum(logits: LinearLogits, sums: TileSums, count: int, rows: int | None = None) -> Tensor:
    """What `sums` says of all tokens, without the logits of more than a tile.

    PyTorch differentiates each tile as soon as its sums are made, so that nothing of it is kept. Gradients of weights
    in 16 bits are added up in float32 and rounded once.

    Args:
        logits: what would make them, [tokens, vocabulary].
        sums: made of PyTorch's functions; nothing but the logits that it is given is differentiated.
        count: how many sums there are.
        rows: tokens of a tile; by default what takes some tens of MiB.

    Returns:
        [sums]; the first one can be differentiated, once, and the others cannot.
    """
    known = (logits, sums, count, rows, torch.is_grad_enabled())
    first, others = _LinearSum.apply(*known, *logits.tensors)  # type: ignore[no-untyped-call]
    return torch.cat([first[None], others])


class _LinearSum(torch.autograd.Function):
    """Sums and gradients in one pass over tiles of tokens."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: LinearLogits,
        sums: TileSums,
        count: int,
        rows: int | None,
        is_training: bool,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        needs = ctx.needs_input_grad[5:] if is_training else (False,) * len(tensors)
        device = tensors[0].device
        with torch.autocast(device.type, enabled=False):
            sweep = Sweep(logits.replaced(tensors), needs, in_full=True)
            total = torch.zeros(count, dtype=sweep.precision, device=device)
            for tile in sweep.tiles(rows or tile_rows(sweep.num_tokens, sweep.size, device)):
                z, kept = sweep.logits(tile)
                if not sweep.needs_gradients:
                    total += sums(z, tile)
                    continue
                with torch.enable_grad():
                    found = sums(z.requires_grad_(), tile)
                    [gradient] = torch.autograd.grad(found[0], z)
                total += found.detach()
                del z, found
                sweep.add_gradient(tile, gradient, kept)
        ctx.sums = sweep.sums()
        first, others = total[0].clone(), total[1:].clone()
        ctx.mark_non_differentiable(others)
        return first, others

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Any) -> Any:
        if ctx.sums is None:
            raise RuntimeError("the loss was differentiated before; its gradients are gone")
        sums, ctx.sums = ctx.sums, None
        return None, None, None, None, None, *sums.scaled(upstream)
