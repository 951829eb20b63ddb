"""Callbacks of Transformers' Trainer that show progress and stop when the user asks to."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import torch
from torch import distributed
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


class StopOnInterrupt(TrainerCallback):
    """On Ctrl-C ends the training after the step that runs, on all ranks at the same step; a second Ctrl-C ends it
    at once."""

    def __init__(self) -> None:
        """No signal is caught before the training begins."""
        self.asked = False
        """Whether the training ends, or ended, because the user asked for it."""
        self._previous: Any = None

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Catch Ctrl-C from now on. Only a process's main thread can."""
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._note)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Stop if any rank was asked to, without the evaluation or checkpoint that may be due."""
        if args.world_size > 1:
            flag = torch.tensor(int(self.asked), device=args.device)
            distributed.all_reduce(flag, op=distributed.ReduceOp.MAX)
            self.asked = bool(flag.item())
        if self.asked:
            control.should_training_stop = True
            control.should_evaluate = control.should_save = False

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The end of a stopped epoch is not a time to evaluate either."""
        if self.asked:
            control.should_evaluate = control.should_save = False

    def restore(self) -> None:
        """Give the signal back to whoever had it."""
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.asked = True
        self.restore()
