"""Transformers' Trainer made to go on from a checkpoint exactly where it was, within an epoch or at its end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dumbo.bridge.checkpoints import TrainingCheckpoints
from dumbo.bridge.quantized_base import write_base_quantization
from dumbo.bridge.requests import Requests, Stop
from dumbo.bridge.training_state import random_states, set_random_states
from dumbo.checkpoint.folder import put_in_place
from dumbo.job import Job


class StoppedInEvaluation(Exception):
    """The training is to end now; the evaluation that was cut short comes when it goes on."""


class ResumableTrainer(Trainer):
    """Writes checkpoints of everything that matters, and goes on from one bit by bit.

    The private methods that it overrides are those with which Transformers writes and reads its own checkpoints, and
    the two in which it says what comes next: after a step, and in an epoch.
    """

    def __init__(self, job: Job, **settings: Any) -> None:
        """`settings` are those of Transformers' Trainer."""
        self._job = job
        self.requests = Requests(job.output_dir, job.config.trainer.checkpoints.every_minutes)
        self.checkpoints = TrainingCheckpoints(self, job)
        self._use_cache = getattr(getattr(job.model, "config", None), "use_cache", None)
        self.stopped_at: Path | None = None
        """The checkpoint with which the training was stopped."""
        self.tokens_seen, self._tokens_logged = 0, 0
        self.checkpoint_seconds = 0.0
        """How long the training waited for checkpoints since the last log."""
        self._before_evaluation: Mapping[str, Any] | None = None
        """The states of the generators, while there is an evaluation, and after one that was cut short."""
        self._last: tuple[float | None, float | None] = (None, None)  # norm of the gradient, learning rate
        callbacks = [*settings.pop("callbacks"), self.requests, _Restore(self)]
        super().__init__(callbacks=callbacks, **settings)

    def save(self, folder: Path) -> None:
        """Write model and tokenizer on the first rank, under a temporary name until they are whole."""
        partial = folder.with_name(f"{folder.name}.partial")
        self.write_model(partial)
        if self.args.should_save:
            put_in_place(partial)
        self.accelerator.wait_for_everyone()

    def write_model(self, folder: Path) -> None:
        """Write model and tokenizer into `folder`, on the first rank."""
        if self.args.should_save:
            model = self.accelerator.unwrap_model(self.model)
            with _config_value(model, "use_cache", self._use_cache):  # the Trainer switched it off for training
                model.save_pretrained(folder)
            write_base_quantization(folder, model)
            self._job.tokenizer.save_pretrained(folder)

    @property
    def is_stopped(self) -> bool:
        """Whether the training ends, or ended, because somebody asked for it."""
        return self.requests.stop is not Stop.NOBODY

    @property
    def checkpoint(self) -> Path | None:
        """What the run goes on from."""
        resumption = self._job.run_state.resumption
        return resumption.checkpoint if resumption is not None else None

    def begin_or_go_on(self) -> None:
        """Train from the start, or from the run's checkpoint, to the end or to where somebody stops it."""
        self.checkpoints.try_saving()
        try:
            if self.checkpoint is None:
                self.train()
                return
            self.checkpoints.load_plugins(self.checkpoint)
            self.args.eval_on_start = False  # that was before the first step
            self.train(resume_from_checkpoint=str(self.checkpoint))
        except StoppedInEvaluation:
            self._job.console.stop_training()
            self.requests.stop_now(self.control)
            self.undo_evaluation()
            if self.state.global_step:
                self._save_checkpoint(self.model_wrapped, None)
        finally:
            self.checkpoints.close()
            self.requests.restore()

    def save_between_steps(self) -> Path | None:
        """Write a checkpoint at once, after a callback or an evaluation has failed: what was to come does when the run
        goes on."""
        self.requests.due_evaluation = self.control.should_evaluate
        self.undo_evaluation()
        return self.checkpoints.save(asked=False, at_once=True)

    def stop_if_asked(self) -> None:
        """Called in long work between steps: the end that somebody wants does not wait for it.

        Raises:
            StoppedInEvaluation: caught where the training began.
        """
        # Several ranks must agree, which they do after the next step.
        if self.requests.wanted and self.args.world_size == 1:
            raise StoppedInEvaluation

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Around an evaluation, which may draw random numbers."""
        self._before_evaluation = random_states()
        yield
        self._before_evaluation = None

    def undo_evaluation(self) -> None:
        """The evaluation that was cut short comes again when the run goes on: with the numbers that it had."""
        if self._before_evaluation is not None:
            set_random_states(self._before_evaluation)

    def steps_per_epoch(self) -> int | None:
        """Optimizer steps in an epoch; None where nobody knows."""
        raise NotImplementedError

    def logging_state(self) -> dict[str, Any]:
        """What stands behind the next logged values, and what was to come at once after this step."""
        per_epoch, step = self.steps_per_epoch(), self.state.global_step
        ended = self.requests.ended_before if self.is_stopped else self.control.should_training_stop
        epoch_ends = ended or step >= self.state.max_steps or (per_epoch is not None and step % per_epoch == 0)
        return {
            "loss": self._tr_loss,
            "total_loss": self._total_loss_scalar,
            "logged_step": self._globalstep_last_logged,
            "tokens_seen": self.tokens_seen,
            "tokens_logged": self._tokens_logged,
            "last": self._last,
            "due_evaluation": self.requests.due_evaluation,
            "due_epoch_end": epoch_ends and not self.requests.at_epoch_end,
            "ended": ended and step < self.state.max_steps,  # it may go on for longer than was planned
        }

    def restore_logging(self, state: Mapping[str, Any]) -> None:
        """Put back what `logging_state` said, and do what was to come next."""
        self._tr_loss = state["loss"].to(self.args.device)
        self._total_loss_scalar, self._globalstep_last_logged = state["total_loss"], state["logged_step"]
        self.tokens_seen, self._tokens_logged = state["tokens_seen"], state["tokens_logged"]
        self._last = state["last"]
        if state["due_evaluation"]:
            self.control.should_evaluate = True
            self._do_what_is_due()
        if state["due_epoch_end"]:
            self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
            self._do_what_is_due()
        if state["ended"] or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True

    def _do_what_is_due(self) -> None:
        norm, rate = self._last
        epoch: Any = self.state.epoch
        self._maybe_log_save_evaluate(self._tr_loss, norm, self.model_wrapped, None, epoch, None, time.time(), rate)

    def _maybe_log_save_evaluate(
        self,
        tr_loss: Any,
        grad_norm: Any,
        model: Any,
        trial: Any,
        epoch: float,
        ignore_keys_for_eval: Any,
        start_time: float,
        learning_rate: float | None = None,
    ) -> None:
        self._last = (None if grad_norm is None else float(grad_norm), learning_rate)
        self.checkpoints.try_optimizer()
        super()._maybe_log_save_evaluate(
            tr_loss, grad_norm, model, trial, epoch, ignore_keys_for_eval, start_time, learning_rate
        )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write what the run can go on from after this step."""
        began = time.monotonic()
        written = self.checkpoints.save(self.requests.asked, at_once=bool(self.requests.wanted))
        self.checkpoint_seconds += time.monotonic() - began
        if self.is_stopped:
            self.stopped_at = written

    def _init_training_state(self, max_steps: int, *more: Any) -> tuple[int, int]:
        epochs, batches = super()._init_training_state(max_steps, *more)
        # The saved state has the intervals of then.
        self.state.compute_steps(self.args, max_steps)  # type: ignore[no-untyped-call]
        # A stream goes on by itself: nothing has to be skipped.
        return (0, 0) if self._job.stream is not None else (epochs, batches)

    def _run_epoch(self, *of_epoch: Any, **named: Any) -> None:
        # What was due after the last step may have ended the training.
        if not self.control.should_training_stop:
            super()._run_epoch(*of_epoch, **named)  # type: ignore[no-untyped-call]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.checkpoints.load_model(Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.checkpoints.load_optimizer(Path(checkpoint))

    def _load_scaler(self, checkpoint: str | None) -> None:
        """The scaler comes back with the optimizer."""

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Generators come back with the logging, before what was due is done."""


class _Restore(TrainerCallback):
    """The last of the callbacks, for when all the others have begun."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Go on where the checkpoint was."""
        if self._trainer.checkpoint is not None:
            self._trainer.restore_logging(self._trainer.checkpoints.load_logging(self._trainer.checkpoint))


@contextlib.contextmanager
def _config_value(model: Any, name: str, value: Any) -> Iterator[None]:
    """The model's configuration with another value for a while; without it where the value is None."""
    if value is None:
        yield
        return
    before = getattr(model.config, name)
    setattr(model.config, name, value)
    try:
        yield
    finally:
        setattr(model.config, name, before)
