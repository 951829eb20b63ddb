"""Keeps the weights of the best evaluation, and gives them back to the model at the end of the training."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from dumbo.bridge.training_state import load_weights
from dumbo.config.arguments import TrainerArguments
from dumbo.errors import ConfigError
from dumbo.metrics import evaluation_path, higher_is_better, logged_path

_KEY = "trainer.arguments.metric_for_best_model"


_RECORD = "evaluation.json"


class BestModel(TrainerCallback, ExportableState):
    """Writes `checkpoints/best` whenever an evaluation is better than all before it; the end of the training takes it.

    An evaluation before the first step does not count. The first of equal ones wins. A training that was stopped ends
    with the weights that it had. The best before is kept as `checkpoints/best.before` for as long as a run that goes on
    from the last checkpoint would want it.
    """

    def __init__(
        self,
        arguments: TrainerArguments,
        folder: Path,
        save: Callable[[Path], None],
        say: Callable[[str], None],
        is_stopped: Callable[[], bool],
        last_checkpoint: Callable[[], int | None],
    ) -> None:
        """`save` writes the model into a folder; it is called on every rank. `is_stopped`: somebody wants the end.
        `last_checkpoint`: the step of the last one that is whole."""
        self._folder, self._save, self._say, self._is_stopped = folder / "best", save, say, is_stopped
        self._last_checkpoint = last_checkpoint
        self._before = folder / "best.before"
        self._metric = evaluation_path(arguments.metric_for_best_model)
        greater = arguments.greater_is_better
        self._greater = higher_is_better(self._metric) if greater is None else greater
        self.value: float | None = None
        """The best value so far."""
        self.step = 0
        """The step of that evaluation."""

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """Keep the weights if this evaluation is the best one."""
        metrics: Mapping[str, float] = {logged_path(name): value for name, value in more["metrics"].items()}
        if self._metric not in metrics:
            known = ", ".join(sorted(metrics))
            raise ConfigError.at(_KEY, f"no evaluation reports '{self._metric}'", f"they report: {known}")
        value = metrics[self._metric]
        if state.global_step == 0 or value != value:
            return
        if self.value is None or (value > self.value if self._greater else value < self.value):
            if args.should_save and self._folder.is_dir() and self.step <= (self._last_checkpoint() or -1):
                shutil.rmtree(self._before, ignore_errors=True)
                self._folder.rename(self._before)
            self.value, self.step = value, state.global_step
            self._save(self._folder)
            if args.should_save:
                (self._folder / _RECORD).write_text(json.dumps({"step": self.step, self._metric: value}) + "\n")

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"args": {}, "attributes": {"value": self.value, "step": self.step}}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Where the run goes on, find the weights that were the best at its checkpoint."""
        if self.value is None or not args.should_save:
            return
        if _step_of(self._folder) != self.step and _step_of(self._before) == self.step:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._before.rename(self._folder)
        if _step_of(self._folder) != self.step:
            self._say(f"the weights of the best evaluation so far, at step {self.step}, are gone: it does not count")
            self.value = None

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """Give the model the weights that were kept, unless it still has them."""
        if args.should_save and not self._is_stopped():
            shutil.rmtree(self._before, ignore_errors=True)
        if self._is_stopped():
            if self.value is not None:
                self._say(
                    f"best {self._metric} {self.value:.4g} at step {self.step}: its weights are in {self._folder}"
                )
            return
        if self.value is None:
            self._say(f"{self._metric} was never a number after a step: the model ends with its last weights")
            return
        if self.step != state.global_step:
            load_weights(more["model"], self._folder)
        self._say(f"best {self._metric} {self.value:.4g} at step {self.step}: the model ends with those weights")


def _step_of(folder: Path) -> int | None:
    """The step of the evaluation whose weights are in `folder`."""
    try:
        step: int = json.loads((folder / _RECORD).read_text())["step"]
    except (OSError, ValueError, KeyError):
        return None
    return step
