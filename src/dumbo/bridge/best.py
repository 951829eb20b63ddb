"""Keeps the weights of the best evaluation, and gives them back to the model at the end of the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dumbo.config.arguments import TrainerArguments
from dumbo.errors import ConfigError
from dumbo.metrics import evaluation_path, higher_is_better, logged_path

_KEY = "trainer.arguments.metric_for_best_model"


class BestModel(TrainerCallback):
    """Writes `checkpoints/best` whenever an evaluation is better than all before it; the end of the training takes it.

    An evaluation before the first step does not count. The first of equal ones wins. A training that the user stopped
    ends with the weights that it had.
    """

    def __init__(
        self,
        arguments: TrainerArguments,
        folder: Path,
        save: Callable[[Path], None],
        say: Callable[[str], None],
        is_stopped: Callable[[], bool],
    ) -> None:
        """`save` writes the model into a folder; it is called on every rank. `is_stopped`: the user wants the end."""
        self._folder, self._save, self._say, self._is_stopped = folder / "best", save, say, is_stopped
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
            self.value, self.step = value, state.global_step
            self._save(self._folder)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any) -> None:
        """Give the model the weights that were kept, unless it still has them."""
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


def load_weights(model: Any, folder: Path) -> None:
    """Copy the weights in `folder`, written by the model's own `save_pretrained`, into `model`."""
    while hasattr(model, "module"):
        model = model.module
    if hasattr(model, "peft_config"):
        from peft import load_peft_weights, set_peft_model_state_dict

        set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
        return
    # Through the library's own loader, which knows how names in files differ from those in memory.
    saved = type(model).from_pretrained(folder, dtype=model.dtype, use_safetensors=True, local_files_only=True)
    model.load_state_dict(saved.state_dict())
