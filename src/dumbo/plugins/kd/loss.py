"""The loss of distillation: a teacher's divergence and the cross entropy, out of one pass over tiles of logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from dumbo.bridge.counting import CountingLoss, counted
from dumbo.bridge.model_logits import logits_of
from dumbo.bridge.token_loss import TokenLoss, insist_on_one_side
from dumbo.data.records import IGNORED
from dumbo.job import Batch
from dumbo.kernels.linear_cross_entropy import LossOptions
from dumbo.kernels.linear_logits import LinearLogits
from dumbo.kernels.linear_sum import linear_sum
from dumbo.losses.token import next_targets
from dumbo.plugins.kd.options import KdOptions
from dumbo.plugins.kd.recording import COLUMNS

Judge = Callable[[Tensor, slice], Tensor]
"""(the student's logits of some trained tokens, [tokens, vocabulary]; which) -> divergences, [tokens]."""


class Teacher(Protocol):
    """Whoever says what each next token should be."""

    def judge(self, batch: Batch, inputs: Batch, kept: Tensor) -> Judge:
        """What it says of the places of a batch that are `kept`, [sequences, tokens]: row i predicts token i + 1.
        `inputs` is what of the batch a model is given."""
        ...


class KdLoss(CountingLoss):
    """(model, batch, num_items) -> alpha * T^2 * divergence + ce_alpha * cross entropy, summed over the batch's
    supervised tokens and divided by `num_items`.

    T^2 keeps gradients as large as those of the cross entropy (Hinton et al. 2015, arXiv 1503.02531, section 2).
    Without gradients it is the cross entropy alone, so that evaluations compare.
    """

    def __init__(self, options: KdOptions, teacher: Teacher, say: Callable[[str], None]) -> None:
        """`teacher` is asked in training only."""
        self._options, self._teacher = options, teacher
        self._plain = TokenLoss(LossOptions(), say)
        self._has_looked = False

    def __call__(self, model: nn.Module, batch: Batch, num_items: Tensor) -> Tensor:
        """The loss; the auxiliary loss of a model's experts is not in it.

        Raises:
            RunError: the model sees both sides of a token.
        """
        if not self._has_looked:
            insist_on_one_side(model, instead_of="kd")
            self._has_looked = True
        inputs = {name: value for name, value in batch.items() if name != "labels" and name not in COLUMNS}
        if not torch.is_grad_enabled():
            return self._plain(model, {**inputs, "labels": batch["labels"]}, num_items)
        targets = next_targets(batch["labels"])
        kept = targets != IGNORED
        with self.autocast():
            judge = self._teacher.judge(batch, inputs, kept)
        targets = targets[kept]
        logits = logits_of(model, inputs)

        def sums(z: Tensor, tile: slice) -> Tensor:
            ce = (z.logsumexp(-1) - z.gather(-1, targets[tile, None])[:, 0]).sum()
            kd = self._options.temperature**2 * judge(z, tile).sum()
            return torch.stack([self._options.alpha * kd + self._options.ce_alpha * ce, kd, ce])

        if isinstance(logits, LinearLogits):
            found = linear_sum(logits.rows(kept), sums, 3, self._options.tile_tokens)
        else:
            z = logits[kept]
            found = sums(z.to(torch.promote_types(z.dtype, torch.float32)), slice(None))
        self.count(counted(kept.device, found[1], found[2], kept.sum()))
        return found[0] / num_items

    def take_means(self, device: torch.device, world_size: int) -> dict[str, float]:
        """T^2 * divergence and cross entropy in nats, whose weighted sum is the loss."""
        kd, ce, tokens = self.take_sums(3, device, world_size)
        return {"kd_loss": kd / tokens, "ce_loss": ce / tokens} if tokens else {}
