"""What the user, the system and the clock ask of a training between two steps: to stop, or to write a checkpoint."""

from __future__ import annotations

import math
import signal
import threading
import time
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SAVE_FILE = "save"
"""A file of this name in the run's folder asks for a checkpoint; it is removed once it is read."""

_LOOK_EVERY = 1.0
"""Seconds between two looks: steps may be short, and file systems slow."""


class Stop(IntEnum):
    """Who wants the training to end; of several the greatest counts."""

    NOBODY = 0
    USER = 1
    SYSTEM = 2


class Requests(TrainerCallback):
    """Ctrl-C and SIGTERM end the training after the step that runs, SIGUSR1 and the file `save` ask for a checkpoint,
    and so does the clock; on all ranks at the same step. A second Ctrl-C ends it at once.

    The last of the callbacks: by then all others have said what comes after a step.
    """

    def __init__(self, run_folder: Path, every_minutes: float | None) -> None:
        """No signal is caught before the training begins. `every_minutes` without a checkpoint there is one."""
        self.wanted = Stop.NOBODY
        """Who has asked this process for the end, at any moment."""
        self.stop = Stop.NOBODY
        """For whom the training ends, or ended: decided after a step, alike on all ranks. Whoever asks later, when
        the training has come to its end by itself, is late."""
        self.asked = False
        """Whether the checkpoint of this step is wanted by the configuration or the user, and not by the clock."""
        self.due_evaluation = False
        """Whether the evaluation of this step was put off, as the training is to end at once."""
        self.at_epoch_end = False
        """Whether the end of the epoch was told to all callbacks."""
        self.ended_before = False
        """Where somebody stops it: whether the training was to end after this step anyway."""
        self._file = run_folder / SAVE_FILE
        self._seconds = None if every_minutes is None else 60 * every_minutes
        self._saved_at = time.monotonic()
        self._save, self._looked_at = False, -math.inf
        self._previous: dict[int, Any] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Catch signals from now on. Only a process's main thread can."""
        self._saved_at = time.monotonic()
        if threading.current_thread() is not threading.main_thread():
            return
        self._previous[signal.SIGINT] = signal.signal(signal.SIGINT, self._note_interrupt)
        self._previous[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._note_termination)
        if hasattr(signal, "SIGUSR1"):  # not on Windows
            self._previous[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._note_save)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Save or stop if any rank was asked to; the evaluation that may be due then comes when the run goes on."""
        wishes = [int(self.wanted), *map(int, self._wants_checkpoint(args))]
        if args.world_size > 1:
            flags = torch.tensor(wishes, device=args.device)
            distributed.all_reduce(flags, op=distributed.ReduceOp.MAX)
            wishes = flags.tolist()
        stop, user, clock = wishes
        self.stop = Stop(stop)
        self.at_epoch_end, self.ended_before = False, control.should_training_stop
        self.asked = bool(control.should_save or user)
        if self.asked or clock or self.stop:
            control.should_save = True
        self.due_evaluation = bool(self.stop and control.should_evaluate)
        if self.stop:
            control.should_training_stop = True
            control.should_evaluate = False

    def stop_now(self, control: TrainerControl) -> None:
        """End the training in the middle of the evaluation after a step."""
        self.stop, self.ended_before, self.due_evaluation = self.wanted, control.should_training_stop, True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The end of a stopped epoch is no time to evaluate or save: that was done, or comes when the run goes on."""
        self.asked = self.at_epoch_end = True
        if self.stop:
            control.should_evaluate = control.should_save = control.should_log = False

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The clock begins anew."""
        self._saved_at = time.monotonic()

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _wants_checkpoint(self, args: TrainingArguments) -> tuple[bool, bool]:
        """Whether the user and whether the clock wants one, as far as this rank knows."""
        by_signal, self._save = self._save, False
        if not args.should_save:
            return by_signal, False
        now = time.monotonic()
        by_file = False
        if now - self._looked_at >= _LOOK_EVERY:
            self._looked_at, by_file = now, self._file.is_file()
        if by_file:
            self._file.unlink(missing_ok=True)
        late = self._seconds is not None and now - self._saved_at >= self._seconds
        return by_signal or by_file, late

    def _note_interrupt(self, signum: int, frame: FrameType | None) -> None:
        self.wanted = max(self.wanted, Stop.USER)
        signal.signal(signal.SIGINT, self._previous.pop(signal.SIGINT))

    def _note_termination(self, signum: int, frame: FrameType | None) -> None:
        self.wanted = Stop.SYSTEM

    def _note_save(self, signum: int, frame: FrameType | None) -> None:
        self._save = True
