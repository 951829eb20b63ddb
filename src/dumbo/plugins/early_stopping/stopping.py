"""Ends the training after evaluations without a new best value."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dumbo.errors import ConfigError
from dumbo.metrics import evaluation_path, higher_is_better, logged_path

if TYPE_CHECKING:
    from dumbo.plugins.early_stopping.plugin import EarlyStoppingOptions


class StopWhenNoBetter(TrainerCallback):
    """Sees the same numbers on every rank, so that all of them stop after the same step.

    An evaluation before the first step does not count. A value that is not a number is never better.
    """

    def __init__(
        self, options: EarlyStoppingOptions, say: Callable[[str], None], note: Callable[[str, Any], None]
    ) -> None:
        """`note` keeps a fact for the run's report."""
        self._options, self._say, self._note = options, say, note
        self._metric = evaluation_path(options.metric)
        self._greater = higher_is_better(self._metric) if options.mode == "auto" else options.mode == "max"
        self._best: float | None = None
        self._best_step = 0
        self._without = 0

    def state(self) -> dict[str, Any]:
        """What was seen so far."""
        return {"best": self._best, "best_step": self._best_step, "without": self._without}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._best, self._best_step, self._without = state["best"], state["best_step"], state["without"]

    def on_train_begin(  # type: ignore[override]
        self, arguments: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Say what is watched."""
        better = "higher" if self._greater else "lower"
        evaluations = _counted(self._options.patience)
        self._say(f"early stopping: after {evaluations} without a better {self._metric} ({better} is better)")

    def on_evaluate(  # type: ignore[override]
        self, arguments: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Compare the evaluation with the best one, and stop where patience is at its end."""
        metrics: Mapping[str, float] = {logged_path(name): value for name, value in more["metrics"].items()}
        if self._metric not in metrics:
            message = f"no evaluation reports '{self._metric}'"
            raise ConfigError.at("trainer.early_stopping.metric", message, f"they report {', '.join(sorted(metrics))}")
        step = state.global_step
        if step == 0:
            return
        if self._is_better(metrics[self._metric]):
            self._best, self._best_step, self._without = metrics[self._metric], step, 0
            return
        self._without += 1
        if self._without >= self._options.patience:
            control.should_training_stop = True
            if step < state.max_steps:
                self._tell(step)

    def _is_better(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        if self._best is None:
            return True
        gain = value - self._best if self._greater else self._best - value
        return gain > self._options.min_delta

    def _tell(self, step: int) -> None:
        best = f"the best was {self._best:.4g} at step {self._best_step}" if self._best is not None else "none was one"
        by = f" by more than {self._options.min_delta:g}" if self._options.min_delta else ""
        count = _counted(self._without)
        self._say(f"early stopping: step {step} ends the training: {self._metric} not better{by} in {count}; {best}")
        facts = {"metric": self._metric, "step": step, "best": self._best, "best_step": self._best_step}
        self._note("early_stopping", facts)


def _counted(number: int) -> str:
    return f"{number} evaluation{'s' if number != 1 else ''}"
