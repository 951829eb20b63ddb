"""The loss of next-token prediction of a model, with its logits or, where they would be large, without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dumbo.bridge.counting import CountingLoss, counted
from dumbo.bridge.head import HeadError, head_shape, keep_eager, leaving_logits
from dumbo.bridge.lazy_logits import LazyLogits
from dumbo.data.records import IGNORED, WEIGHTS
from dumbo.errors import RunError
from dumbo.job import Batch
from dumbo.kernels.linear_cross_entropy import (
    LinearLoss,
    LossOptions,
    TokenWeights,
    cross_entropy_of,
    linear_cross_entropy,
)
from dumbo.kernels.linear_logits import LinearLogits, tile_rows
from dumbo.losses.token import next_targets, next_token_cross_entropy, next_weights

WORTHWHILE_BYTES = 2 << 20
"""Logits of a forward pass, in float32, that are worth doing without: more take longer, too (benchmarks/loss.py)."""

Compute = Callable[[LinearLogits, Tensor, LossOptions, Tensor | None], LinearLoss]
"""What makes the loss of logits that were left to it, of targets, and of weights where tokens have some."""


class TokenLoss(CountingLoss):
    """(model, batch, num_items) -> the sum over the batch's supervised tokens divided by `num_items`, each times its
    weight where the batch has `weights`.

    Smoothing and other terms belong to training; without gradients they are left out, so that evaluations compare.
    """

    def __init__(
        self,
        options: LossOptions,
        say: Callable[[str], None],
        *,
        worthwhile_bytes: int = WORTHWHILE_BYTES,
        compute: Compute = linear_cross_entropy,
    ) -> None:
        """`worthwhile_bytes`: logits of fewer are held; 0: none are, where that can be."""
        self._options, self._say, self._worthwhile, self._compute = options, say, worthwhile_bytes, compute
        self._has_said: set[str] = set()
        self._size: int | HeadError | None = None

    def weigh(self, weigh: TokenWeights) -> None:
        """From now on multiply the cross entropy of each token by what `weigh` says of it, in training."""
        self._options = self._options._replace(weigh=weigh)

    def take_means(self, device: torch.device, world_size: int) -> dict[str, float]:
        """As wanted: how often the likeliest token was right, entropies in nats, weights by what was predicted."""
        if not self._options.with_metrics and self._options.weigh is None:
            return {}
        right, entropy, weight, tokens = self.take_sums(4, device, world_size)
        if not tokens:
            return {}
        metrics = {"token_accuracy": right / tokens, "entropy": entropy / tokens} if self._options.with_metrics else {}
        return metrics if self._options.weigh is None else {**metrics, "token_weight": weight / tokens}

    def __call__(self, model: nn.Module, batch: Batch, num_items: Tensor) -> Tensor:
        """The loss; the auxiliary loss of a model's experts is not in it."""
        if self._size is None:
            insist_on_one_side(model)
        targets = next_targets(batch["labels"])
        kept = targets != IGNORED
        options = self._options if torch.is_grad_enabled() else LossOptions(tile_rows=self._options.tile_rows)
        inputs = {name: value for name, value in batch.items() if name not in ("labels", WEIGHTS)}
        weights = next_weights(batch[WEIGHTS])[kept] if WEIGHTS in batch else None
        logits = self._logits(model, inputs, targets.numel())
        linear = self._unmade(logits, options)
        if linear is not None:
            found = self._compute(linear.rows(kept), targets[kept], options, weights)
        elif options.z_loss or options.with_metrics or options.weigh is not None or weights is not None:
            found = cross_entropy_of(values_of(logits)[kept], targets[kept], options, weights)
        else:
            return next_token_cross_entropy(values_of(logits), batch["labels"], options.label_smoothing) / num_items
        if found.num_correct is not None or found.weight is not None:
            known = [0 if value is None else value for value in found[1:4]]
            self.count(counted(kept.device, *known, kept.sum()))
        return found.total / num_items

    def _logits(self, model: Any, inputs: Batch, positions: int) -> Tensor:
        """What the model returns, left out where that is worthwhile and can be."""
        if self._size is None:
            try:
                self._size = head_shape(model).size
            except HeadError as error:
                self._size = error
        if isinstance(self._size, HeadError):
            size = getattr(getattr(model, "config", None), "vocab_size", None) or 0
            if 4 * positions * size >= self._worthwhile:
                self._say_once("head", f"loss: all logits are held, as {self._size}")
        elif 4 * positions * self._size >= self._worthwhile:
            keep_eager(model)
            with leaving_logits(model):
                left: Tensor = model(**inputs).logits
            if not isinstance(left, LazyLogits) or left.reason is not None:
                why = f" ({left.reason})" if isinstance(left, LazyLogits) else ""
                self._say_once("values", f"loss: all logits are held, as the model needs their values{why}")
            return left
        held: Tensor = model(**inputs).logits
        return held

    def _unmade(self, logits: Tensor, options: LossOptions) -> LinearLogits | None:
        """What would make logits that nobody has computed; None for others."""
        if not isinstance(logits, LazyLogits) or logits.reason is not None:
            return None
        insist_on_weights(logits)
        self._say_once("without", _described(logits, options))
        return logits.linear

    def _say_once(self, what: str, line: str) -> None:
        if what not in self._has_said:
            self._has_said.add(what)
            self._say(line)


def sees_both_sides(model: Any) -> bool:
    """Whether a model, which may be wrapped, sees the token that it should predict, as those of diffusion do."""
    config = getattr(getattr(model, "module", model), "config", None)
    return getattr(config, "is_causal", None) is False


def insist_on_one_side(model: Any, instead_of: str = "") -> None:
    """Raise a RunError where the model to train sees both sides; `instead_of` names a plugin that must go for
    diffusion."""
    if sees_both_sides(model):
        place = f" in place of '{instead_of}'" if instead_of else ""
        raise RunError(
            "the model sees both sides of a token (is_causal: false in its config.json): it would learn to copy\n"
            f"    add 'diffusion' under plugins{place}, or write model.config_overrides: {{is_causal: true}}"
        )


def insist_on_weights(logits: LazyLogits) -> None:
    """Raise a RunError where the head's weights are not there any more."""
    for tensor in logits.linear.tensors:
        is_plain = type(tensor) in (Tensor, nn.Parameter)
        if is_plain and tensor.numel() and not tensor.untyped_storage().nbytes():
            raise RunError(
                "the weights of the output head are gone when the loss is computed\n"
                "    with FSDP, shard the whole model last, with reshard_after_forward=False"
            )


def values_of(logits: Tensor) -> Tensor:
    """The logits, computed if they are not yet."""
    return logits.values_of("the loss") if isinstance(logits, LazyLogits) else logits


def _described(logits: LazyLogits, options: LossOptions) -> str:
    size = logits.linear.size
    positions, mib = logits.numel() // size, 4 * logits.numel() / 2**20
    rows = options.tile_rows or tile_rows(positions, size, logits.device)
    held = f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"
    if rows >= positions:
        return f"loss: logits are made for trained tokens alone, of {positions:,} x {size:,} ({held})"
    return (
        f"loss: logits are made for {rows:,} trained tokens at a time; {positions:,} x {size:,} ({held}) are never held"
    )
