"""A callback of Transformers' Trainer that shows progress."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dumbo.console import Console


class ShowProgress(TrainerCallback):
    """Moves the progress bar, and sees to it that the last step is logged."""

    def __init__(self, console: Console) -> None:
        """`console` is silent on other ranks than the first."""
        self._console = console

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the bar."""
        self._console.start_training(state.max_steps)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Move the bar."""
        self._console.advance(state.global_step)
        if state.global_step >= state.max_steps or control.should_training_stop:
            control.should_log = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Leave the bar as it stands."""
        self._console.stop_training()
