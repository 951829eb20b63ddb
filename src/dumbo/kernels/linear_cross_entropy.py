"""Cross entropy and log-probabilities of logits that a linear layer would make, a tile at a time, on any device.

The largest tensor of a training step with a large vocabulary, [tokens, vocabulary], is never held: neither the logits
nor their gradient. `linear_cross_entropy` makes the gradients together with the loss, so that no product is computed
twice; `select_log_probabilities`, whose result may go into any loss, makes them in the backward pass, from logits that
are made again. The idea: Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language Models" (arXiv 2411.09009).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dumbo.kernels.linear_logits import Coefficients, LinearLogits, Sweep, tile_rows

TokenWeights = Callable[[Tensor, Tensor], Tensor]
"""(logits [tokens, vocabulary], log-probability of each target [tokens]) -> how much each token counts, [tokens]."""


class LinearLoss(NamedTuple):
    """A loss, and what is known of the tokens after the same pass."""

    total: Tensor
    """Scalar in nats, the sum over all tokens."""
    num_correct: Tensor | None
    """Scalar: how many targets have the largest logit."""
    entropy: Tensor | None
    """Scalar in nats: the sum of the entropies of the predicted distributions."""
    weight: Tensor | None = None
    """Scalar: the sum of what `LossOptions.weigh` said of the tokens."""
    cross_entropy: Tensor | None = None
    """Scalar in nats: the sum of the cross entropies alone, without weights and other terms."""


class LossOptions(NamedTuple):
    """What is summed of each token with logits z, target y and weight w:

    w * (v(z, y) * ((1 - s) * (lse(z) - z_y) + s * (lse(z) - mean(z))) + c * lse(z)^2), where lse is log sum exp.
    """

    label_smoothing: float = 0.0
    """s, from 0 to below 1: Szegedy et al. 2016 (arXiv 1512.00567), section 7."""
    z_loss: float = 0.0
    """c: keeps logits near 0 on average; PaLM (arXiv 2204.02311), section 5, has 1e-4."""
    gradient_filter: float = 0.0
    """Tokens of the vocabulary that have less than this of the gradient of every logit of a tile get none of that tile:
    an approximation. Half the distance of two numbers in 16 bits near 1, 2 ** -12, loses nothing in that precision."""
    tile_rows: int | None = None
    """Tokens of a tile; by default what takes some tens of MiB."""
    with_metrics: bool = False
    """Whether `num_correct`, `entropy` and `cross_entropy` are wanted."""
    weigh: TokenWeights | None = None
    """v, which is not differentiated: how much a token counts by what is predicted for it; None: 1."""


def linear_cross_entropy(
    logits: LinearLogits,
    targets_N: Tensor,  # noqa: N803
    options: LossOptions,
    weights_N: Tensor | None = None,  # noqa: N803
) -> LinearLoss:
    """The sum over all tokens of their cross entropy, without the logits.

    Args:
        logits: what would make them, [tokens, vocabulary].
        targets_N: [tokens], ids within the vocabulary: drop what is not trained before.
        options: terms of the loss, and how it is computed.
        weights_N: [tokens], by which each token's loss is multiplied; not differentiated.

    Returns:
        The loss; 0 with a gradient of 0 where there is no token. Its gradients are made now, where they are needed, and
        so it can be differentiated once.
    """
    known = (logits, options, targets_N, weights_N, torch.is_grad_enabled())
    return LinearLoss(*_CrossEntropy.apply(*known, *logits.tensors))  # type: ignore[no-untyped-call]


def cross_entropy_of(
    logits_NV: Tensor,  # noqa: N803
    targets_N: Tensor,  # noqa: N803
    options: LossOptions,
    weights_N: Tensor | None = None,  # noqa: N803
) -> LinearLoss:
    """As `linear_cross_entropy`, of logits that are there; differentiable as often as PyTorch's functions are."""
    z = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    z_y, lse = z.gather(-1, targets_N[:, None])[:, 0], z.logsumexp(-1)
    w = None if weights_N is None else weights_N.detach().to(z.dtype)
    v = None
    if options.weigh is not None:
        with torch.no_grad():
            v = options.weigh(z.detach(), (z_y - lse).detach())
    total = _losses(lse, z_y, z.mean(-1) if options.label_smoothing else None, _Weights(w, v), options).sum()
    weight = None if v is None else v.sum()
    if not options.with_metrics:
        return LinearLoss(total, None, None, weight)
    with torch.no_grad():
        num_correct = (z.argmax(-1) == targets_N).sum().to(z.dtype)
        entropy = (lse - torch.linalg.vecdot(torch.softmax(z, -1), z)).sum()
        return LinearLoss(total, num_correct, entropy, weight, (lse - z_y).sum())


def select_log_probabilities(logits: LinearLogits, ids_NK: Tensor, rows: int | None = None) -> tuple[Tensor, Tensor]:  # noqa: N803
    """Log-probabilities of some tokens at each place, and the entropy there, without the logits.

    With the next tokens (K = 1) they are what losses over pairs and rewards are made of; with a teacher's K most likely
    tokens, and its log-probabilities q, `(q.exp() * (q - result)).sum(-1)` is the part of the forward Kullback-Leibler
    divergence that these tokens have.

    Args:
        logits: what would make them, [tokens, vocabulary].
        ids_NK: [tokens, K], ids within the vocabulary.
        rows: tokens of a tile; by default what takes some tens of MiB.

    Returns:
        [tokens, K] in nats, differentiable once, in at least float32; and the entropies [tokens], which are not.
    """
    found: tuple[Tensor, Tensor]
    found = _SelectedLogProbabilities.apply(logits, ids_NK, rows, *logits.tensors)  # type: ignore[no-untyped-call]
    return found


class _Weights(NamedTuple):
    """Of each token of a tile."""

    own: Tensor | None
    """Its own; None: 1."""
    of_prediction: Tensor | None
    """What `LossOptions.weigh` says; None: 1."""


class _CrossEntropy(torch.autograd.Function):
    """Loss and gradients in one pass over tiles of tokens."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: LinearLogits,
        options: LossOptions,
        targets_N: Tensor,  # noqa: N803
        weights_N: Tensor | None,  # noqa: N803
        is_training: bool,
        *tensors: Tensor,
    ) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[5:] if is_training else (False,) * len(tensors)
        sweep = Sweep(logits.replaced(tensors), needs, options.gradient_filter)
        rows = options.tile_rows or tile_rows(sweep.num_tokens, sweep.size, targets_N.device)
        total = torch.zeros((), dtype=sweep.precision, device=targets_N.device)
        tally = torch.zeros(4, dtype=sweep.precision, device=targets_N.device)
        weights_N = None if weights_N is None else weights_N.detach().to(sweep.precision)  # noqa: N806
        in_vocabulary_tiles = sweep.is_narrow and rows < sweep.num_tokens
        sums, said = [], []
        for tile in sweep.tiles(rows):
            z, kept = sweep.logits(tile)
            y = targets_N[tile]
            z_y = z.gather(-1, y[:, None])[:, 0]
            mean = z.mean(-1) if options.label_smoothing else None
            p, lse = _softmax(z)
            v = None if options.weigh is None else options.weigh(z, z_y - lse)
            w = _Weights(None if weights_N is None else weights_N[tile], v)
            total += _losses(lse, z_y, mean, w, options).sum()
            tally += _counted(z, p, lse, y, v, options)
            if in_vocabulary_tiles:
                sums.append(lse)
                said += [] if v is None else [v]
            elif sweep.needs_gradients:
                del z
                sweep.add(tile, p, kept, _coefficients(lse, y, w, sweep.size, options))
        if in_vocabulary_tiles and sweep.needs_gradients:
            lse, w = torch.cat(sums), _Weights(weights_N, torch.cat(said) if said else None)
            sweep.add_by_vocabulary(lse, _coefficients(lse, targets_N, w, sweep.size, options), rows)
        ctx.sums = sweep.sums()
        right, entropy, weight, cross_entropy = (count.clone() for count in tally)
        ctx.mark_non_differentiable(right, entropy, weight, cross_entropy)
        weight_or_none = None if options.weigh is None else weight
        if not options.with_metrics:
            return total, None, None, weight_or_none, None
        return total, right, entropy, weight_or_none, cross_entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> Any:
        if ctx.sums is None:
            raise RuntimeError("the loss was differentiated before; its gradients are gone")
        sums, ctx.sums = ctx.sums, None
        return None, None, None, None, None, *sums.scaled(upstream)


def _counted(z: Tensor, p: Tensor, lse: Tensor, y: Tensor, v: Tensor | None, options: LossOptions) -> Tensor | int:
    """Right predictions, entropies, weights and cross entropies of a tile, those that are wanted."""
    if not options.with_metrics and v is None:
        return 0
    counts = torch.zeros(4, dtype=z.dtype, device=z.device)
    if options.with_metrics:
        counts[0] = (z.argmax(-1) == y).sum()
        counts[1] = (lse - torch.linalg.vecdot(p, z)).sum()
        counts[3] = (lse - z.gather(-1, y[:, None])[:, 0]).sum()
    if v is not None:
        counts[2] = v.sum()
    return counts


def _losses(lse: Tensor, z_y: Tensor, mean: Tensor | None, weights: _Weights, options: LossOptions) -> Tensor:
    """The loss of each token of a tile."""
    losses = lse - z_y
    if mean is not None:
        losses = losses + options.label_smoothing * (z_y - mean)
    if weights.of_prediction is not None:
        losses = losses * weights.of_prediction
    if options.z_loss:
        losses = losses + options.z_loss * lse**2
    return losses if weights.own is None else losses * weights.own


def _coefficients(lse: Tensor, targets: Tensor, weights: _Weights, size: int, options: LossOptions) -> Coefficients:
    """The gradient of the loss with respect to the logits."""
    w = torch.ones_like(lse) if weights.own is None else weights.own
    v = w if weights.of_prediction is None else w * weights.of_prediction
    s = options.label_smoothing
    of_softmax = v + 2 * options.z_loss * lse * w if options.z_loss else v
    everywhere = -v * (s / size) if s else None
    return Coefficients(of_softmax, everywhere, targets[:, None], (-(1 - s) * v)[:, None])


def _softmax(z: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax of a tile, and the logarithm of the sum by which it was divided."""
    p = torch.softmax(z, -1)
    # log(p) of the largest one is exact where that of a small one would have no digits left.
    return p, z.amax(-1) - p.amax(-1).log()


class _SelectedLogProbabilities(torch.autograd.Function):
    """Log-probabilities now; gradients later, from logits that are made again."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: LinearLogits,
        ids_NK: Tensor,  # noqa: N803
        rows: int | None,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        sweep = Sweep(logits.replaced(tensors), (False,) * len(tensors))
        ctx.rows = rows or tile_rows(sweep.num_tokens, sweep.size, ids_NK.device)
        selected = torch.empty(ids_NK.shape, dtype=sweep.precision, device=ids_NK.device)
        lse_N = torch.empty(len(ids_NK), dtype=sweep.precision, device=ids_NK.device)  # noqa: N806
        entropy_N = torch.empty_like(lse_N)  # noqa: N806
        for tile in sweep.tiles(ctx.rows):
            z, _ = sweep.logits(tile)
            p, lse_N[tile] = _softmax(z)
            selected[tile] = z.gather(-1, ids_NK[tile]) - lse_N[tile, None]
            entropy_N[tile] = lse_N[tile] - torch.linalg.vecdot(p, z)
        ctx.logits = logits.replaced(())
        ctx.save_for_backward(ids_NK, lse_N, *tensors)
        ctx.mark_non_differentiable(entropy_N)
        return selected, entropy_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream_NK: Tensor, _: Any) -> Any:  # noqa: N803
        ids_NK, lse_N, *tensors = ctx.saved_tensors  # noqa: N806
        sweep = Sweep(ctx.logits.replaced(tensors), ctx.needs_input_grad[3:])
        found = Coefficients(-upstream_NK.sum(-1), None, ids_NK, upstream_NK.to(sweep.precision))
        if sweep.is_narrow and ctx.rows < sweep.num_tokens:
            sweep.add_by_vocabulary(lse_N, found, ctx.rows)
        else:
            for tile in sweep.tiles(ctx.rows):
                z, kept = sweep.logits(tile)
                sweep.add(tile, z.sub_(lse_N[tile, None]).exp_(), kept, found.of(tile))
        return None, None, None, *sweep.sums().rounded()
