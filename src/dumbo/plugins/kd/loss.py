"""The loss of distillation: a teacher's divergence and the cross entropy, out of one pass over tiles of logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dumbo.bridge.model_logits import logits_of
from dumbo.bridge.token_loss import TokenLoss
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


class KdLoss:
    """(model, batch, num_items) -> alpha * T^2 * divergence + ce_alpha * cross entropy, summed over the batch's
    supervised tokens and divided by `num_items`.

    T^2 keeps gradients as large as those of the cross entropy (Hinton et al. 2015, arXiv 1503.02531, section 2).
    Without gradients it is the cross entropy alone, so that evaluations compare.
    """

    def __init__(self, options: KdOptions, teacher: Teacher, say: Callable[[str], None]) -> None:
        """`teacher` is asked in training only."""
        self._options, self._teacher = options, teacher
        self._plain = TokenLoss(LossOptions(), say)
        self.sums: Tensor | None = None
        """T^2 * divergences and cross entropies in nats, and tokens, each summed since the last log."""

    def __call__(self, model: nn.Module, batch: Batch, num_items: Tensor) -> Tensor:
        """The loss; the auxiliary loss of a model's experts is not in it."""
        inputs = {name: value for name, value in batch.items() if name != "labels" and name not in COLUMNS}
        if not torch.is_grad_enabled():
            return self._plain(model, {**inputs, "labels": batch["labels"]}, num_items)
        targets = next_targets(batch["labels"])
        kept = targets != IGNORED
        judge, targets = self._teacher.judge(batch, inputs, kept), targets[kept]
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
        parts = torch.stack([found[1], found[2], kept.sum()]).detach().double()
        self.sums = parts if self.sums is None else self.sums.to(parts.device) + parts
        return found[0] / num_items


class LogParts(TrainerCallback):
    """Adds both parts of the loss to the logs of the training, as means over all tokens on all ranks."""

    def __init__(self, loss: KdLoss) -> None:
        self._loss = loss

    def on_log(  # type: ignore[override]
        self, arguments: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Once per logged loss."""
        logs = more["logs"]
        if "loss" not in logs:
            return
        sums, self._loss.sums = self._loss.sums, None
        if sums is None:
            sums = torch.zeros(3, dtype=torch.float64, device=arguments.device)
        if arguments.world_size > 1:
            torch.distributed.all_reduce(sums)
        kd, ce, tokens = sums.tolist()
        if tokens:
            logs["kd_loss"], logs["ce_loss"] = kd / tokens, ce / tokens
