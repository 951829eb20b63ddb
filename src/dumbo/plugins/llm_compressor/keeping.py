"""A callback that makes weights zero again after every step."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dumbo.plugins.llm_compressor.zeros import Zeros
from dumbo.services import Services


class KeepZeros(TrainerCallback):
    """Undoes what momentum and weight updates did to zeros, before anything sees the weights."""

    def __init__(self, zeros: Zeros, services: Services) -> None:
        """Note the shares of zeros before the training."""
        self._zeros, self._services = zeros, services
        self._before = zeros.shares()
        self._note(self._before)

    def on_optimizer_step(  # type: ignore[override]
        self, arguments: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Make zeros zero again."""
        if self._keeps(state):
            self._zeros.restore()

    def on_train_end(  # type: ignore[override]
        self, arguments: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Prove that they are, and note and say how many weights are zero."""
        if self._keeps(state):
            self._zeros.check_kept()
        after = self._zeros.shares()
        self._note(after)
        mean = sum(after[name] * weight.numel() for name, weight in self._zeros.weights.items())
        total = sum(weight.numel() for weight in self._zeros.weights.values())
        self._services.say(f"llm_compressor: {mean / total:.2%} of {len(after)} weights are zero at the end")

    def _keeps(self, state: TrainerState) -> bool:
        return self._zeros.end is None or (state.epoch or 0.0) < self._zeros.end

    def _note(self, after: dict[str, float]) -> None:
        rows = [
            {"name": name, "before": round(before, 6), "after": round(after[name], 6)}
            for name, before in self._before.items()
        ]
        self._services.note("sparsity", rows)
