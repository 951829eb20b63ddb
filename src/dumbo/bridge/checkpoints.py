"""Writes the state of a training as a checkpoint, and goes on from one."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers.trainer import TRAINER_STATE_NAME

from dumbo.bridge.training_state import (
    RATES,
    callback_states,
    digest_under_adapters,
    load_callback_states,
    load_optimizer,
    load_schedule,
    load_weights,
    not_kept,
    random_states,
    set_random_states,
)
from dumbo.checkpoint.folder import Checkpoints, whole_checkpoints
from dumbo.checkpoint.manifest import Manifest
from dumbo.checkpoint.opening import STATE, write_opening
from dumbo.checkpoint.tree import encode, read_tree, write_tree
from dumbo.config.arguments import OPTIMIZER_KEYS, SCHEDULE_KEYS
from dumbo.errors import KeyPath, Problem, RunError

if TYPE_CHECKING:
    from dumbo.bridge.resuming import ResumableTrainer
    from dumbo.job import Job

_SCHEDULE = frozenset({*SCHEDULE_KEYS, "learning_rate"})
_LENGTH = frozenset({"max_steps", "num_train_epochs"})
_OPTIMIZER = frozenset({*OPTIMIZER_KEYS, "learning_rate"})


class TrainingCheckpoints:
    """The checkpoints of one training, on every rank; the first one has the files' names."""

    def __init__(self, trainer: ResumableTrainer, job: Job) -> None:
        self._trainer, self._job = trainer, job
        arguments = job.config.trainer.arguments
        background = job.config.trainer.checkpoints.background
        self.folder = Checkpoints(job.output_dir, arguments.save_total_limit, job.console.say, background)
        resumption = job.run_state.resumption
        if resumption is not None and resumption.checkpoint is not None:
            self.folder.last_step = resumption.step
        self._beside: list[str] = []
        self._data: str | None = None
        self._frozen: str | None = None
        self._tried_optimizer = False

    def try_saving(self) -> None:
        """Save the model once and read it back, so that no run finds out at its end that it cannot; what does not come
        back bit by bit is kept beside the model in every checkpoint.

        Raises:
            RunError: the model cannot be saved, or not be read back.
        """
        self._data = self._data_digest()
        self._frozen = digest_under_adapters(self._trainer.accelerator.unwrap_model(self._trainer.model))
        resumed = self._job.run_state.resumption
        if resumed is not None and resumed.manifest is not None:
            self._compare(resumed.manifest, resumed.changed)
        self._encoded({"plugins": dict(self._job.run_state.plugin_states())})
        states = random_states()
        folder = self._job.output_dir / "checkpoints" / "trial.partial"
        try:
            self._trainer.write_model(folder)
            if self._trainer.args.should_save:
                self._beside = not_kept(self._trainer.accelerator.unwrap_model(self._trainer.model), folder)
        except (OSError, SafetensorError, ValueError, RuntimeError) as error:
            message = f"the model cannot be saved, so the training does not begin: {error}"
            raise RunError(message) from error
        finally:
            if self._trainer.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
                _remove_if_empty(folder.parent)
            set_random_states(states)

    def try_optimizer(self) -> None:
        """After the first step: can what the optimizer keeps be saved?

        Raises:
            RunError: it cannot.
        """
        if not self._tried_optimizer:
            self._tried_optimizer = True
            assert self._trainer.optimizer is not None
            self._encoded({"optimizer": self._trainer.optimizer.state_dict()})

    def save(self, asked: bool, at_once: bool = False) -> Path | None:
        """Write a checkpoint of the training as it is; None where that was not possible, which is told."""
        step, is_first = self._trainer.state.global_step, self._trainer.args.should_save
        if is_first:
            self.close()  # What became of the last one in the background.
        target = self.folder.folder / f"step-{step:06}"
        partial = target.with_name(f"{target.name}.partial")
        failure = self._shared(lambda: self.folder.begin(step) if is_first else None)
        failure = failure or self._shared(lambda: self._write(partial))
        if failure is None and is_first:
            failure = _failure_of(lambda: self.folder.finish(partial, self._manifest(asked), at_once))
        if failure is None:
            return target
        if is_first:
            shutil.rmtree(partial, ignore_errors=True)
        goes_on = "" if at_once else ", and the training goes on"
        self._job.console.say(f"step {step}: no checkpoint was written{goes_on}: {failure}")
        return None

    def close(self) -> None:
        """Wait for the last checkpoint; tell if it came to nothing."""
        failure = _failure_of(self.folder.wait)
        if failure is not None:
            self._job.console.say(f"the last checkpoint could not be written: {failure}")

    def _write(self, partial: Path) -> None:
        trainer, state = cast("Any", self._trainer), partial / STATE
        state.mkdir(exist_ok=True)
        rank = trainer.args.process_index
        of_rank = {"random": random_states(), "plugins": dict(self._job.run_state.plugin_states())}
        self._write_tree(of_rank, state, f"rank-{rank:05}")
        trainer.write_model(partial)
        if not trainer.args.should_save:
            return
        trainer.state.save_to_json(str(partial / TRAINER_STATE_NAME))
        own = trainer.accelerator.unwrap_model(trainer.model).state_dict()
        scaler = trainer.accelerator.scaler
        tree = {
            "schedule": trainer.lr_scheduler.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "logging": trainer.logging_state(),
            "callbacks": callback_states(trainer.callback_handler.callbacks),
        }
        self._write_tree(tree, state, "state")
        # Large ones by themselves, as each is wanted once, at another moment than the others.
        self._write_tree(trainer.optimizer.state_dict(), state, "optimizer")
        self._write_tree({name: own[name] for name in self._beside}, state, "beside")
        stream = self._job.stream
        write_opening(partial, None if stream is None else stream.state(), self._job.run_state.tracker_states())

    def _write_tree(self, tree: Any, folder: Path, name: str) -> None:
        try:
            write_tree(tree, folder, name)
        except TypeError as error:
            raise RunError(f"a checkpoint cannot hold the state of this training: {error}") from error

    def _encoded(self, tree: Any) -> None:
        try:
            encode(tree)
        except TypeError as error:
            raise RunError(f"a checkpoint cannot hold the state of this training: {error}") from error

    def _manifest(self, asked: bool) -> Manifest:
        run = self._job.run_state
        return Manifest(
            step=self._trainer.state.global_step,
            tokens=self._trainer.tokens_seen,
            asked=asked,
            world_size=self._trainer.args.world_size,
            data=self._data,
            frozen=self._frozen,
            config=run.config,
            versions=run.versions,
            created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        )

    def _data_digest(self) -> str | None:
        job = self._job
        trained = job.stream.fingerprint if job.stream is not None else job.train_dataset and job.train_dataset.digest()
        return "-".join([trained or "", *([job.eval_dataset.digest()] if job.eval_dataset is not None else [])])

    def _compare(self, manifest: Manifest, changed: Sequence[KeyPath]) -> None:
        """The rows must be those of the checkpoint, as its place among them means nothing among others; so must be the
        weights that it does not have."""
        if self._data != manifest.data and not any(path[0] == "datasets" for path in changed):
            message = "the rows are not those of the checkpoint: a file, the template or the tokenizer has changed"
            hints = ("put it back, or add --allow-change datasets to go on at the same place among the new rows",)
            raise RunError(str(Problem(message, hints=hints)))
        if self._frozen != manifest.frozen:
            message = "the model under the adapter is not that of the checkpoint: model.base_model has other weights"
            hints = ("put them back; of a model on the hub, name its commit with model.revision",)
            raise RunError(str(Problem(message, hints=hints)))

    def load_model(self, checkpoint: Path) -> None:
        """Give the model the weights of the checkpoint."""
        model = self._trainer.accelerator.unwrap_model(self._trainer.model)
        load_weights(model, checkpoint)
        beside = read_tree(checkpoint / STATE, "beside")
        own = model.state_dict()
        with torch.no_grad():
            for name, value in beside.items():
                own[name].copy_(value)

    def load_optimizer(self, checkpoint: Path) -> None:
        """Give optimizer, schedule and scaler their states."""
        trainer, state = self._trainer, read_tree(checkpoint / STATE, "state")
        resumption = self._job.run_state.resumption
        changed = resumption.changed if resumption is not None else ()
        keys = {str(path[2]) for path in changed if path[:2] == ("trainer", "arguments") and len(path) > 2}
        settings = bool(keys & _OPTIMIZER)
        schedule = bool(keys & _SCHEDULE)
        if not isinstance(trainer.lr_scheduler, ReduceLROnPlateau):
            # Other rows may be other numbers of steps; what a plugin's schedule goes by, nobody knows.
            others = any(path[0] == "datasets" for path in changed) or self._job.build_scheduler is not None
            schedule |= bool(keys & _LENGTH) or bool(changed and others)
        saved = read_tree(checkpoint / STATE, "optimizer")
        load_optimizer(trainer.optimizer, saved, keep=None if settings else RATES if schedule else ())
        load_schedule(trainer.lr_scheduler, state["schedule"], trainer.state.global_step, schedule)
        if state["scaler"] is not None and trainer.accelerator.scaler is not None:
            trainer.accelerator.scaler.load_state_dict(state["scaler"])

    def roll_back(self) -> Path | None:
        """Give model, optimizer and plugins what the newest whole checkpoint has, which is returned; the schedule and
        the place among the rows stay. None: there is no checkpoint."""
        found: Path | None = None
        if self._trainer.args.should_save:
            self.close()
            step = self._trainer.state.global_step
            whole = [
                (path, manifest.asked)
                for path, manifest in whole_checkpoints(self._job.output_dir, self._job.console.say)
                if manifest.step <= step
            ]
            # Those of the configuration are there at the same steps whenever the run was stopped.
            found = next((path for path, asked in whole if asked), whole[0][0] if whole else None)
        if self._trainer.args.world_size > 1:
            found = broadcast_object_list([found])[0]
        if found is not None:
            self.load_model(found)
            load_optimizer(self._trainer.optimizer, read_tree(found / STATE, "optimizer"), keep=None)
            self._job.run_state.load_plugin_states(self._of_rank(found)["plugins"])
        return found

    def load_plugins(self, checkpoint: Path) -> None:
        """Give plugins and callbacks their states."""
        load_callback_states(
            self._trainer.callback_handler.callbacks, read_tree(checkpoint / STATE, "state")["callbacks"]
        )
        self._job.run_state.load_plugin_states(self._of_rank(checkpoint)["plugins"])

    def load_logging(self, checkpoint: Path) -> dict[str, Any]:
        """The state behind the logged metrics; the generators of this process get theirs."""
        set_random_states(self._of_rank(checkpoint)["random"])
        logging: dict[str, Any] = read_tree(checkpoint / STATE, "state")["logging"]
        return logging

    def _of_rank(self, checkpoint: Path) -> dict[str, Any]:
        rank = self._trainer.args.process_index
        state: dict[str, Any] = read_tree(checkpoint / STATE, f"rank-{rank:05}")
        return state

    def _shared(self, act: Callable[[], Any]) -> str | None:
        """Act on every rank; the failure of one is that of all."""
        failure = _failure_of(act)
        if self._trainer.args.world_size == 1:
            return failure
        failures = [found for found in gather_object([failure]) if found is not None]
        return str(broadcast_object_list([failures[0]])[0]) if failures else None


def _failure_of(act: Callable[[], Any]) -> str | None:
    """What stands in the way of writing; None where nothing does."""
    try:
        act()
    except (OSError, SafetensorError) as error:
        return str(error)
    except Exception as error:
        # The tokenizers library raises plain exceptions with the system's words.
        if "os error" not in str(error):
            raise
        return str(error)
    return None


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
