"""How well an evaluation's masked tokens were predicted."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dumbo.bridge.counting import summed
from dumbo.plugins.diffusion.loss import COUNTED, DiffusionLoss, metrics_of


class LogDiffusion(TrainerCallback):
    """Adds it to the logs of evaluations, summed over all ranks."""

    def __init__(self, loss: DiffusionLoss) -> None:
        self._loss = loss

    def on_log(  # type: ignore[override]
        self, arguments: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Once per evaluation."""
        logs = more["logs"]
        if "eval_loss" in logs:
            counts, self._loss.evaluated = self._loss.evaluated, None
            # How much is masked is the same in every evaluation.
            found = metrics_of(summed(counts, len(COUNTED), arguments.device, arguments.world_size))
            logs.update({f"eval_{name}": found[name] for name in ("accuracy", "ce_loss") if name in found})
