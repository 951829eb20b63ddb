"""The cross entropy of the next token in Liger's kernels: on logits, or on hidden states and the head's weight."""

from __future__ import annotations

from collections.abc import Callable

import torch
from liger_kernel.transformers.functional import liger_cross_entropy as liger_cross_entropy_of
from torch import Tensor, nn

from dumbo.bridge.head import leaving_logits
from dumbo.bridge.lazy_logits import LazyLogits
from dumbo.bridge.loss_backends import UnfitError, liger_cross_entropy
from dumbo.bridge.token_loss import TokenLoss
from dumbo.data.records import IGNORED
from dumbo.errors import ConfigError
from dumbo.job import Batch, Loss
from dumbo.kernels.linear_cross_entropy import LossOptions
from dumbo.losses.token import next_targets
from dumbo.plugins.liger.plugin import LigerOptions


def build_loss(options: LigerOptions, label_smoothing: float, say: Callable[[str], None]) -> Loss:
    """The loss that `options` name: a sum over the supervised tokens, divided by their number in the global batch.

    Smoothing and token scaling belong to training; without gradients they are left out, so that evaluations compare.
    """
    if options.fused_linear_cross_entropy:
        return FusedLoss(label_smoothing, options.use_token_scaling)
    if not options.cross_entropy:
        return TokenLoss(LossOptions(label_smoothing), say)

    def loss(model: nn.Module, batch: Batch, num_items: Tensor) -> Tensor:
        logits_BTV = model(**_inputs(batch)).logits  # noqa: N806
        smoothing = label_smoothing if torch.is_grad_enabled() else 0.0
        return cross_entropy(logits_BTV, batch["labels"], smoothing) / num_items

    return loss


def cross_entropy(logits_BTV: Tensor, labels_BT: Tensor, label_smoothing: float) -> Tensor:  # noqa: N803
    """As `next_token_cross_entropy`, in Liger's kernel, which computes in float32 and holds no other copy."""
    targets_BT = next_targets(labels_BT)  # noqa: N806
    supervised_BT = targets_BT != IGNORED  # noqa: N806
    logits_NV, targets_N = logits_BTV[supervised_BT], targets_BT[supervised_BT]  # noqa: N806
    if not len(targets_N):
        return logits_NV.float().sum()
    # The kernel writes the gradient over its input; indexing has made a copy of the model's logits.
    total: Tensor = liger_cross_entropy_of(logits_NV, targets_N, reduction="sum", label_smoothing=label_smoothing)
    return total


class FusedLoss:
    """The loss of hidden states and the head's weight: the head leaves its logits to it."""

    def __init__(self, label_smoothing: float, use_token_scaling: bool) -> None:
        """`use_token_scaling`: multiply each token's loss by its predicted probability, which is not differentiated."""
        self._smoothing, self._scales_tokens = label_smoothing, use_token_scaling

    def __call__(self, model: nn.Module, batch: Batch, num_items: Tensor) -> Tensor:
        """The sum over the supervised tokens of `batch` divided by `num_items`."""
        with leaving_logits(model):
            logits = model(**_inputs(batch)).logits
        if not isinstance(logits, LazyLogits) or logits.reason is not None:
            raise _unfit("the model changes its logits after its head in a way that is not known here")
        targets_BT = next_targets(batch["labels"])  # noqa: N806
        kept = targets_BT != IGNORED
        training = torch.is_grad_enabled()
        options = LossOptions(self._smoothing if training else 0.0)
        try:
            scales = self._scales_tokens and training
            total = liger_cross_entropy(
                logits.linear.rows(kept), targets_BT[kept], options, use_token_scaling=scales
            ).total
        except UnfitError as error:
            raise _unfit(str(error)) from error
        return total / num_items


def _unfit(message: str) -> ConfigError:
    return ConfigError.at("model.liger.fused_linear_cross_entropy", message, "set cross_entropy: true instead")


def _inputs(batch: Batch) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}
