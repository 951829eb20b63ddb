"""What was masked, and how well it was predicted, since the last log."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dumbo.plugins.diffusion.loss import COUNTED, DiffusionLoss, metrics_of


class LogDiffusion(TrainerCallback):
    """Adds it to the logs of training and evaluation, summed over all ranks."""

    def __init__(self, loss: DiffusionLoss) -> None:
        self._loss = loss

    def on_log(  # type: ignore[override]
        self, arguments: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Once per logged loss, and once per evaluation."""
        logs = more["logs"]
        if "loss" in logs:
            counts, self._loss.counts = self._loss.counts, None
            logs.update(metrics_of(_summed(counts, arguments)))
        if "eval_loss" in logs:
            counts, self._loss.evaluated = self._loss.evaluated, None
            found = metrics_of(_summed(counts, arguments))  # how much is masked is the same in every evaluation
            logs.update({f"eval_{name}": found[name] for name in ("accuracy", "ce_loss") if name in found})


def _summed(counts: Tensor | None, arguments: TrainingArguments) -> list[float]:
    if counts is None:
        counts = torch.zeros(len(COUNTED), dtype=torch.float64)
    counts = counts.to(arguments.device)
    if arguments.world_size > 1:
        torch.distributed.all_reduce(counts)
    numbers: list[float] = counts.tolist()
    return numbers
