"""Accuracy and entropy of the tokens that were trained since the last log."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dumbo.bridge.token_loss import TokenLoss


class LogTokenMetrics(TrainerCallback):
    """Adds them to the logs of the training, over all ranks."""

    def __init__(self, loss: TokenLoss) -> None:
        self._loss = loss

    def on_log(  # type: ignore[override]
        self, arguments: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Once per logged loss."""
        logs = more["logs"]
        if "loss" not in logs:
            return
        counts, self._loss.counts = self._loss.counts, None
        if counts is None:
            counts = torch.zeros(3, dtype=torch.float64, device=arguments.device)
        if arguments.world_size > 1:
            torch.distributed.all_reduce(counts)
        num_correct, entropy, tokens = counts.tolist()
        if tokens:
            logs["token_accuracy"], logs["entropy"] = num_correct / tokens, entropy / tokens
