"""Transformers' Trainer with guards around every optimizer step: bad numbers, too little memory, too much time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from accelerate.utils.memory import clear_device_cache
from torch import Tensor, distributed, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dumbo.bridge.bad_rows_file import describe_rows, write_rows
from dumbo.bridge.memory import saved_bytes
from dumbo.bridge.out_of_memory import is_out_of_memory, memory_message
from dumbo.bridge.resuming import ResumableTrainer
from dumbo.bridge.spikes import LIMIT, SpikeWatch
from dumbo.bridge.splitting import describe_batch, split_batch
from dumbo.bridge.step_guard import StepGuard, bad_step_error, ordinal
from dumbo.bridge.training_state import random_states, set_random_states
from dumbo.data.plan import BatchPlan
from dumbo.data.records import Origin
from dumbo.disk import warn_of_little_space
from dumbo.errors import OutOfMemory, RunError, TrainingStopped
from dumbo.job import Job
from dumbo.losses.token import sum_of_weights
from dumbo.watchdog import Watchdog

_MEMORY = (RuntimeError, MemoryError)


@dataclass
class _Step:
    """The step that is being made."""

    batches: Sequence[Mapping[str, Any]] = ()
    loss: Tensor | None = None
    """Of the forward passes that were made."""
    made: int = 0
    """Batches that were gone through."""
    random: Mapping[str, Any] = field(default_factory=dict)
    """As it was at the beginning; so too all that follow."""
    logged_loss: Tensor | None = None
    tokens_seen: int = 0
    faults: Mapping[str, Any] = field(default_factory=dict)
    """What the judges of steps knew."""
    is_updating: bool = False
    """Whether the weights may be others than before it."""


class _AfterStep(TrainerCallback):
    """Tells when the update is made: what comes then (callbacks, logging, evaluation, saving) is not the step's."""

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """The update is made."""
        self._tell()


class GuardedTrainer(ResumableTrainer):
    """Makes each optimizer step under the guards of `trainer.faults`.

    A step whose loss or gradient is not finite never reaches the optimizer. One that needs too much memory ends the
    run with what was in it, or is made again from its beginning with smaller forward passes. One that takes too long
    ends the run with the stacks of all threads. A subclass calls `_begin_step` and `_take_batches`.
    """

    def __init__(self, job: Job, callbacks: Sequence[TrainerCallback], **options: Any) -> None:
        """`options` are those of Transformers' Trainer."""
        self._faults = job.config.trainer.faults
        self._guard = StepGuard(self._faults.bad_steps, job.console.say)
        self._spikes = SpikeWatch(self._faults.spike_factor) if self._faults.on_spike == "rollback" else None
        self._halvings = 0
        self._step = _Step()
        self._aux_loss: Tensor | None = None
        self._is_evaluating = False
        self.evaluated: Mapping[str, Any] | None = None
        self._watchdog: Watchdog | None = None
        super().__init__(job, callbacks=[_AfterStep(self._end_step), *callbacks], **options)

    def train(self, *positional: Any, **named: Any) -> Any:
        """As Transformers', under guard from the first step on.

        Raises:
            TrainingStopped: a step cannot be made.
            RunError: memory is not enough, or a step hangs.
        """
        if self.args.should_save:
            # A checkpoint goes when the next one is whole.
            checkpoints = 0 if self.args.save_strategy == "no" else 1 + (self.args.save_total_limit or 1)
            checkpoints += 0 if self._job.config.trainer.checkpoints.every_minutes is None else 1
            needed = saved_bytes(self._job.model, checkpoints)
            warn_of_little_space(self._job.output_dir, needed, self._job.console.say)
        if self._faults.step_timeout is not None:
            rank = f"-rank{self.args.process_index}" if self.args.process_index else ""
            report = f"stalled-step-{{step}}{rank}.txt"
            limit, folder, leave_word = self._faults.step_timeout, self._job.output_dir, self._job.leave_word
            self._watchdog = Watchdog(limit, report, folder, before_exit=leave_word)
            self._watchdog.start()
        try:
            return super().train(*positional, **named)
        except _MEMORY as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(memory_message(self.args.device, self._where(), error, self._ways()), error) from error
        finally:
            if self._watchdog is not None:
                self._watchdog.close()
            self._guard.release()

    @property
    def skipped_steps(self) -> int:
        """Steps so far whose loss or gradient was not finite."""
        return self._guard.skipped

    @property
    def batch_plan(self) -> BatchPlan:
        """Which rows are trained on when; of a subclass."""
        raise NotImplementedError

    def save_what_was_made(self) -> Path | None:
        """Something has failed that is no fault of the training: write a checkpoint of the steps that were made. None
        where that was not possible: in an update, or where other ranks wait for this one."""
        # At the very end the model may have the weights of its best evaluation.
        has_best = self._job.config.trainer.arguments.load_best_model_at_end
        is_last = has_best and self.state.global_step >= self.state.max_steps
        if self.args.world_size > 1 or self._step.is_updating or is_last:
            return None
        if self._step.logged_loss is None:
            return self.save_between_steps()
        # What a stream has handed out for this step is gone.
        return self.save_before_step() if self._job.stream is None else None

    def _begin_step(self) -> None:
        """A step begins with the reading of its rows."""
        self._step = _Step(
            random=random_states(),
            logged_loss=self._tr_loss.clone(),
            tokens_seen=self.tokens_seen,
            faults=self._judges_state(),
        )
        if self._watchdog is not None:
            self._watchdog.begin(self.state.global_step + 1)

    def _forget_passes(self) -> None:
        """The passes of the step so far will be made again; for a subclass that counts something in them."""

    def _end_step(self) -> None:
        if self._watchdog is not None:
            self._watchdog.pause()
        self._step = _Step()

    def _take_batches(self, batches: Sequence[Mapping[str, Any]]) -> None:
        """These are the forward passes of the step on this rank."""
        self._step.batches = batches

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward pass of a batch; with too little memory, of the step's batches so far in smaller ones.

        Raises:
            TrainingStopped: memory is not enough, and no forward pass can be smaller.
        """
        step = self._step
        batches: Sequence[Mapping[str, Any]] = [inputs]
        while True:
            try:
                loss = self._pass_through(model, batches, num_items_in_batch)
                break
            except _MEMORY as error:
                if not is_out_of_memory(error):
                    raise
                self._halve_or_raise(inputs, error)
            # Outside of the handler, as the error holds on to all that the forward pass has made.
            self._aux_loss = None
            self._forget_passes()
            model.zero_grad()
            clear_device_cache(garbage_collection=True)
            assert step.logged_loss is not None
            set_random_states(step.random)
            self._tr_loss.copy_(step.logged_loss)
            batches, step.loss = step.batches[: step.made + 1], None
        step.made += 1
        step.loss = loss if step.loss is None else step.loss + loss
        return loss

    def _pass_through(
        self, model: nn.Module, batches: Sequence[Mapping[str, Any]], num_items: Tensor | int | None
    ) -> Tensor:
        """The loss of `batches`, whose gradients are added up."""
        if self._halvings:
            # What is averaged over forward passes is so over all that the step will have.
            passes = sum(len(split_batch(batch, self._halvings)) for batch in self._step.batches)
            self.current_gradient_accumulation_steps = passes
        make = super().training_step
        pieces = (piece for batch in batches for piece in split_batch(batch, self._halvings))
        losses = [make(model, dict(piece), num_items) for piece in pieces]
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _halve_or_raise(self, inputs: Mapping[str, Any], error: BaseException) -> None:
        pieces = split_batch(inputs, self._halvings)
        largest = max(pieces, key=lambda piece: piece["labels"].numel())
        number, size = self.state.global_step + 1, describe_batch(largest)
        if self._faults.on_oom == "fail" or len(split_batch(inputs, self._halvings + 1)) == len(pieces):
            # Other ranks wait for this one in the middle of the step, and could save nothing with it.
            kind = TrainingStopped if self.args.world_size == 1 else RunError
            can_halve = self._job.rows_are_separate and len(split_batch(largest, 1)) > 1 and self.args.world_size == 1
            where = f"step {number} has a forward pass of {size}"
            ways = [*self._ways(), *(["trainer.faults.on_oom: halve"] if can_halve else [])]
            raise kind(memory_message(self.args.device, where, error, ways)) from error
        self._halvings += 1
        self._job.console.say(
            f"memory is not enough for a forward pass of {size}: "
            f"step {number} is made again in halves, and so are all after it"
        )

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """An evaluation is made; one that fails stays noted, for the message. `evaluated` is its batch at the moment,
        None while plugins evaluate."""
        self._is_evaluating = True
        with super().evaluating():
            yield
        self._is_evaluating = False

    def _where(self) -> str:
        """What the training is at, outside of the passes of a step."""
        number = self.state.global_step
        if not self._is_evaluating:
            return f"in the update of step {number + 1}" if self._step.batches else f"after step {number}"
        when = f"after step {number}" if number else "before the first step"
        passes = "" if self.evaluated is None else f" has a forward pass of {describe_batch(self.evaluated)}"
        return f"the evaluation {when}{passes}"

    def _ways(self) -> list[str]:
        """What needs less memory."""
        ours = self._job.config.trainer.arguments
        if self._is_evaluating and self.evaluated is None:
            return ["fewer or shorter texts to evaluate on"]
        key, rows = "physical_batch_size", ours.physical_batch_size
        if self._is_evaluating:
            key, rows = "per_device_eval_batch_size", ours.per_device_eval_batch_size or rows
        ways = [f"a smaller trainer.arguments.{key} (it is {rows})"] if rows > 1 else []
        # Transformers 5.20 renamed it. An evaluation keeps no activations.
        checkpoints = getattr(self.args, "activation_checkpointing", self.args.gradient_checkpointing)
        ways += [] if checkpoints or self._is_evaluating else ["gradient_checkpointing: true"]
        return [*ways, "a smaller trainer.data.sequence_length"]

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm of the step's gradient; where it or the loss is not finite, the update will not be made.

        Raises:
            TrainingStopped: so it was in too many steps in a row.
        """
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[no-untyped-call]
        fault = self._fault(norm)
        number = self.state.global_step + 1
        if self._guard.judge(number, fault):
            assert fault is not None
            raise bad_step_error(number, fault, self._guard.in_a_row, self._dump_rows(number))
        if fault is not None or self._leaps(number):
            model.zero_grad()  # Callbacks before the update must not see it either.
        self._step.is_updating = True
        return norm

    def _leaps(self, number: int) -> bool:
        """Whether the loss of this step leaps: then the model is as at the last checkpoint, and the step is left out.

        Raises:
            TrainingStopped: it leaps again and again.
        """
        if self._spikes is None:
            return False
        assert self._step.loss is not None
        loss = self._step.loss.clone()
        if self.args.world_size > 1:
            distributed.all_reduce(loss)
            loss /= self.args.world_size
        leap = self._spikes.judge(loss.item())
        if leap is None:
            return False
        if self._spikes.in_a_row > LIMIT:
            raise TrainingStopped(
                f"step {number}: {leap}, for the {ordinal(self._spikes.in_a_row)} time within few steps\n"
                "    going back does not help; try a lower learning_rate, more warmup_steps, or look at the rows"
            )
        self._step.is_updating = True
        checkpoint = self.checkpoints.roll_back()
        where = "there is no checkpoint to go back to: it alone is left out"
        if checkpoint is not None:
            where = f"model and optimizer are as in {checkpoint} again, and the rows since do not come again"
        self._job.console.say(f"step {number}: {leap}; {where}")
        self._guard.leave_out()
        return True

    def _fault(self, norm: Any) -> str | None:
        """What is wrong with the step, alike on all ranks."""
        assert self._step.loss is not None
        loss = self._step.loss
        finite = torch.stack([torch.isfinite(torch.as_tensor(each, device=loss.device)) for each in (loss, norm)])
        if self.accelerator.scaler is not None:
            finite[1] = True  # The scaler of float16 looks for its scale in this way, and leaves the update out itself.
        bad = (~finite).to(torch.int32)
        if self.args.world_size > 1:
            distributed.all_reduce(bad, op=distributed.ReduceOp.MAX)
        loss_is_bad, norm_is_bad = bad.tolist()
        return "the loss is not finite" if loss_is_bad else "the gradient is not finite" if norm_is_bad else None

    def save_before_step(self) -> Path | None:
        """Write a checkpoint of the training as it was when the step began that cannot be made."""
        assert self._step.logged_loss is not None
        self._forget_passes()
        set_random_states(self._step.random)
        self._tr_loss.copy_(self._step.logged_loss)
        self.tokens_seen = self._step.tokens_seen
        self._load_judges(self._step.faults)  # who makes this step again judges it again
        return self.checkpoints.save(asked=False, at_once=True)

    def _dump_rows(self, number: int) -> str:
        """Write the rows of this step on all ranks to the run's folder, and say where; raises nothing of its own, as
        the run is to end with what was wrong with the step."""
        model = self._job.model
        row_loss = self._row_loss if self._job.rows_are_separate else None
        model.eval()
        try:
            rows = list(describe_rows(self._step.batches, self._origins(), self._job.tokenizer, row_loss))
        except Exception as error:
            rows = [{"not_described": f"{type(error).__name__}: {error}"}]
        model.train()
        if self.args.world_size > 1:
            rows = gather_object(rows)
        file = self._job.output_dir / f"bad-step-{number:06}.jsonl"
        return write_rows(file, rows) if self.args.process_index == 0 else f"its rows are in {file}"

    def _row_loss(self, batch: Mapping[str, Any]) -> float:
        count = sum_of_weights(batch).clamp(min=1e-6)
        self.current_gradient_accumulation_steps = 1
        with self.compute_loss_context_manager():
            inputs = self._prepare_inputs(dict(batch))
            loss = self.compute_loss(self._job.model, inputs, num_items_in_batch=count.to(self.args.device))
        assert isinstance(loss, Tensor)
        mean: float = loss.item() / self.args.world_size
        return mean

    def _origins(self) -> list[list[Origin | None]]:
        """Where the rows of the step's batches came from; empty lists where that is not known."""
        dataset, batches = self._job.train_dataset, self._step.batches
        if dataset is None:
            return [[] for _ in batches]
        epoch, before = divmod(self.state.global_step, self.batch_plan.steps_per_epoch)
        passes = self.batch_plan.micro_batches(epoch, self.args.process_index)
        first = before * self.args.gradient_accumulation_steps
        chosen: Iterable[Any] = islice(passes, first, first + len(batches))
        rows = [[row[0] if isinstance(row, tuple) else row for row in numbers] for numbers in chosen]
        return [[self._job.find_origin(dataset, row) if row >= 0 else None for row in numbers] for numbers in rows]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As Transformers', with the number of steps that were skipped, where there are some."""
        if self._spikes is not None and self._spikes.count and "loss" in logs:
            logs["rollbacks"] = self._spikes.count
        if self._guard.skipped and "loss" in logs:
            logs["skipped_steps"] = self._guard.skipped
            # Transformers takes the sum of losses from itself, which leaves one that is not a number as it is.
            self._tr_loss.zero_()
        super().log(logs, start_time)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As Transformers', under guard."""
        optimizer = super().create_optimizer(model)
        self._guard.protect(optimizer)
        return optimizer

    def logging_state(self) -> dict[str, Any]:
        """With what a run that goes on has to know of the faults before."""
        judges = self._judges_state()
        judges["faults"]["halvings"] = self._halvings
        return {**super().logging_state(), **judges}

    def restore_logging(self, state: Mapping[str, Any]) -> None:
        """Those faults first, as steps may follow at once."""
        self._load_judges(state)
        self._halvings = state["faults"]["halvings"]
        super().restore_logging(state)

    def _judges_state(self) -> dict[str, Any]:
        return {"faults": self._guard.state(), "spikes": None if self._spikes is None else self._spikes.state()}

    def _load_judges(self, state: Mapping[str, Any]) -> None:
        self._guard.load(state["faults"])
        if self._spikes is not None and state["spikes"] is not None:
            self._spikes.load(state["spikes"])
