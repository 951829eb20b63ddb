"""The cross entropy of the next token in Liger's kernels: on logits, or on hidden states and the head's weight."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from liger_kernel.transformers.functional import liger_cross_entropy, liger_fused_linear_cross_entropy
from torch import Tensor, nn

from dumbo.bridge.head import Head, computing_in_head
from dumbo.data.records import IGNORED
from dumbo.errors import ConfigError
from dumbo.job import Batch, Loss
from dumbo.losses.token import next_token_cross_entropy
from dumbo.plugins.liger.plugin import LigerOptions


def build_loss(options: LigerOptions, label_smoothing: float) -> Loss:
    """The loss that `options` name: a sum over the supervised tokens, divided by their number in the global batch.

    Smoothing and token scaling belong to training; without gradients they are left out, so that evaluations compare.
    """
    if options.fused_linear_cross_entropy:
        return FusedLoss(label_smoothing, options.use_token_scaling)

    def loss(model: nn.Module, batch: Batch, num_items: Tensor) -> Tensor:
        logits_BTV = model(**_inputs(batch)).logits  # noqa: N806
        smoothing = label_smoothing if torch.is_grad_enabled() else 0.0
        if options.cross_entropy:
            return cross_entropy(logits_BTV, batch["labels"], smoothing) / num_items
        return next_token_cross_entropy(logits_BTV, batch["labels"], smoothing) / num_items

    return loss


def cross_entropy(logits_BTV: Tensor, labels_BT: Tensor, label_smoothing: float) -> Tensor:  # noqa: N803
    """As `next_token_cross_entropy`, in Liger's kernel, which computes in float32 and holds no other copy."""
    targets_BT = _targets(labels_BT)  # noqa: N806
    supervised_BT = targets_BT != IGNORED  # noqa: N806
    logits_NV, targets_N = logits_BTV[supervised_BT], targets_BT[supervised_BT]  # noqa: N806
    if not len(targets_N):
        return logits_NV.float().sum()
    # The kernel writes the gradient over its input; indexing has made a copy of the model's logits.
    total: Tensor = liger_cross_entropy(logits_NV, targets_N, reduction="sum", label_smoothing=label_smoothing)
    return total


class FusedLoss:
    """The loss of hidden states and the head's weight, computed while the model calls its head."""

    def __init__(self, label_smoothing: float, use_token_scaling: bool) -> None:
        """`use_token_scaling`: multiply each token's loss by its predicted probability, which is not differentiated."""
        self._smoothing, self._scales_tokens = label_smoothing, use_token_scaling
        self._proven = False

    def __call__(self, model: nn.Module, batch: Batch, num_items: Tensor) -> Tensor:
        """The sum over the supervised tokens of `batch` divided by `num_items`."""
        totals: list[Tensor] = []
        hidden: list[Tensor] = []

        def in_head(hidden_BTH: Tensor, head: Head) -> Tensor:  # noqa: N803
            totals.append(self._sum(hidden_BTH, batch["labels"], head))
            hidden.append(hidden_BTH.detach())
            # What the model returns must lead to the loss: DDP looks from there for the parameters that were used.
            return hidden_BTH + (totals[-1] * 0).nan_to_num().to(hidden_BTH.dtype)

        with computing_in_head(model, in_head) as head:
            output: Any = model(**_inputs(batch))
        if not self._proven:
            _prove(head, hidden, output.logits)
            self._proven = True
        return totals[0] / num_items

    def _sum(self, hidden_BTH: Tensor, labels_BT: Tensor, head: Head) -> Tensor:  # noqa: N803
        targets_BT = _targets(labels_BT)  # noqa: N806
        if targets_BT.shape != hidden_BTH.shape[:2]:
            raise _unfit("the model does not give its head one hidden state per token")
        supervised_BT = targets_BT != IGNORED  # noqa: N806
        hidden_NH, targets_N = hidden_BTH[supervised_BT], targets_BT[supervised_BT]  # noqa: N806
        if head.scale != 1.0:
            hidden_NH = hidden_NH * head.scale  # noqa: N806
        if not len(targets_N):
            return hidden_NH.float().sum() + head.weight.float().sum() * 0
        training = torch.is_grad_enabled()
        if training and head.weight.requires_grad and not hidden_NH.requires_grad:
            hidden_NH.requires_grad_()  # Liger computes no gradient at all where its input needs none.
        total: Tensor = liger_fused_linear_cross_entropy(
            hidden_NH,
            head.weight,
            targets_N,
            bias=head.bias,
            reduction="sum",
            softcap=head.softcap,
            label_smoothing=self._smoothing if training else 0.0,
            use_token_scaling=self._scales_tokens and training,
            accum_dtype=torch.float32,
        )
        return total


def _prove(head: Head, hidden: list[Tensor], returned: Tensor) -> None:
    """Make sure that the model does to its logits what the loss takes it to do: it did that to hidden states now."""
    if len(hidden) != 1 or hidden[0].shape != returned.shape:
        raise _unfit("the model does not call its head once for its logits")
    # A few positions suffice; 16 bits keep about three digits.
    states, found = (tensor[:1, :8].detach().float() for tensor in (hidden[0], returned))
    if not torch.allclose(head.finish(states), found, rtol=2e-2, atol=1e-3 * float(states.abs().max())):
        raise _unfit("the model changes its logits after its head in a way that is not known here")


def _unfit(message: str) -> ConfigError:
    return ConfigError.at("model.liger.fused_linear_cross_entropy", message, "set cross_entropy: true instead")


def _targets(labels_BT: Tensor) -> Tensor:  # noqa: N803
    return F.pad(labels_BT[:, 1:], (0, 1), value=IGNORED)


def _inputs(batch: Batch) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}
