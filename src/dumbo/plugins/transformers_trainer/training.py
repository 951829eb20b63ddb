"""The heavy half: a job becomes a `DumboTrainer`, and says what was chosen for `auto`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from dumbo.bridge.memory import choose_checkpointing
from dumbo.bridge.optimizers import optimizer_problems, schedule_problems
from dumbo.bridge.packing import Packing, prepare_for_packing
from dumbo.bridge.trainer import DumboTrainer
from dumbo.bridge.training_args import training_arguments, uses_bf16
from dumbo.data.plan import describe_plan, total_steps
from dumbo.data.streaming import Stream
from dumbo.disk import naming_refusals
from dumbo.errors import ConfigError, Problem, RunError
from dumbo.job import Job, TrainResult
from dumbo.plugin_loader import Services
from dumbo.plugins.transformers_trainer.plugin import too_few_steps


@dataclass(frozen=True)
class TransformersRun:
    """A trainer in the sense of `dumbo.job.Trainer`."""

    trainer: DumboTrainer

    def train(self) -> TrainResult:
        """Train to the end, or to the user's interrupt."""
        return self.trainer.train_to_end()

    def save_model(self, folder: Path) -> None:
        """Write model and tokenizer.

        Raises:
            RunError: the disk refuses.
        """
        with naming_refusals(folder):
            self.trainer.save(folder)


def build(job: Job, services: Services) -> TransformersRun:
    """Make the trainer.

    Raises:
        RunError: this machine cannot do what the arguments ask for.
        ConfigError: an argument that the optimizer does not take.
    """
    ours = job.config.trainer.arguments
    checkpointing, reason = checkpointing_choice(job)
    try:
        theirs = training_arguments(
            job.config, job.output_dir, services.world_size, job.eval_dataset is not None, checkpointing
        )
    except (ValueError, ImportError, RuntimeError) as error:
        raise RunError(f"trainer.arguments cannot be used on this machine: {error}") from error
    problems: list[Problem] = []
    if ours.fp16 and theirs.device.type == "cpu":
        message = "float16 needs a GPU, and this run is on the CPU"
        problems.append(Problem(message, ("trainer", "arguments", "fp16"), hints=("bf16: true works on a CPU",)))
    if job.config.trainer.faults.on_oom == "halve" and services.world_size > 1:
        message = "a step cannot be made again while other processes wait in it for this one"
        hint = "write fail, and a smaller trainer.arguments.physical_batch_size"
        problems.append(Problem(message, ("trainer", "faults", "on_oom"), hints=(hint,)))
    if job.build_optimizer is None:
        problems += optimizer_problems(ours, theirs, job.model)
    if job.build_scheduler is None:
        problems += schedule_problems(theirs, total_steps=max(theirs.max_steps, 1))
    if problems:
        raise ConfigError(problems)
    trainer = DumboTrainer(job, theirs)
    _check_steps(job, trainer)
    if job.config.trainer.data.packing:
        trainer.packing = _packing(job)  # now, as the model has come to its device
    _say_what_was_chosen(job, trainer, services, f"{'on' if checkpointing else 'off'}{reason}")
    if ours.max_steps is not None and "num_train_epochs" in ours.model_fields_set:
        services.say(f"max_steps: {ours.max_steps} goes before num_train_epochs: {ours.num_train_epochs:g}")
    return TransformersRun(trainer)


def _check_steps(job: Job, trainer: DumboTrainer) -> None:
    """Refuse to look for leaps where no step can be one; a stream's `max_steps` was looked at before."""
    if job.config.trainer.faults.on_spike == "rollback" and job.stream is None:
        problems = list(too_few_steps(total_steps(trainer.batch_plan, job.config.trainer.arguments)))
        if problems:
            raise ConfigError(problems)


def _packing(job: Job) -> Packing:
    asked, ours = job.config.model.attention, job.config.trainer.arguments
    autocast = torch.bfloat16 if uses_bf16(ours) else torch.float16 if ours.fp16 else None
    try:
        return prepare_for_packing(job.model, None if asked == "auto" else asked, autocast)
    except RunError as error:
        hint = "remove packing; padding then costs least with trainer.data.group_by_length: true"
        raise ConfigError.at("trainer.data.packing", str(error).removeprefix("packing: "), hint) from error


def checkpointing_choice(job: Job) -> tuple[bool, str]:
    """Whether to checkpoint activations, and why where nobody said."""
    ours = job.config.trainer.arguments
    if ours.gradient_checkpointing != "auto":
        return ours.gradient_checkpointing, ""
    accelerator = None if ours.use_cpu else torch.accelerator.current_accelerator(check_available=True)
    device = accelerator or torch.device("cpu")
    wide = not (uses_bf16(ours) or ours.fp16) and getattr(job.model, "dtype", torch.float32) == torch.float32
    data = job.config.trainer.data
    longest = data.sequence_length or 0
    if not data.packing and job.train_dataset is not None:
        longest = job.train_dataset.longest
    rows, tokens = ours.physical_batch_size, longest
    chosen, reason = choose_checkpointing(job.model, device, rows, tokens, bytes_per_value=4 if wide else 2)
    return chosen, f" ({reason})"


def _say_what_was_chosen(job: Job, trainer: DumboTrainer, services: Services, checkpointing: str) -> None:
    model, theirs = cast("Any", job.model), trainer.args
    compute = "bfloat16" if theirs.bf16 else "float16" if theirs.fp16 else str(model.dtype).removeprefix("torch.")
    attention = getattr(model.config, "_attn_implementation", None) or "the model's own"
    services.say(f"on {theirs.device}, computing in {compute}, attention {attention}")
    services.say(f"gradient checkpointing {checkpointing}")
    physical, accumulated = theirs.per_device_train_batch_size, theirs.gradient_accumulation_steps
    processes = "1 process" if services.world_size == 1 else f"{services.world_size} processes"
    batch_size = physical * accumulated * services.world_size
    sizes = f"{batch_size} sequences per step = {physical} per pass x {accumulated} accumulated x {processes}"
    services.say(sizes)
    if job.stream is not None:
        services.say(_describe_stream(job.stream, theirs.max_steps))
    else:
        services.say(describe_plan(trainer.batch_plan, job.config.trainer.arguments))
    chosen = {"device": str(theirs.device), "compute": compute, "attention": attention}
    services.note("chosen", {**chosen, "gradient checkpointing": checkpointing, "batch": sizes})
    services.note("machine", {"devices": [device_name(theirs.device)] * services.world_size})
    if torch.cuda.device_count() > 1 and services.world_size == 1 and not theirs.use_cpu:
        count = torch.cuda.device_count()
        services.say(
            f"{count} GPUs are here and one is used; torchrun --nproc-per-node {count} -m dumbo ... uses them all"
        )


def _describe_stream(stream: Stream, steps: int) -> str:
    settings = stream.settings
    how = {"joined": "joined to", True: "packed into", False: "as"}[settings.packing]
    ends = "" if settings.packing == "joined" else "up to "
    said = f"{steps:,} steps of a stream; {settings.window_rows:,} rows at a time, {how} sequences of "
    said += f"{ends}{settings.capacity:,} tokens"
    if settings.packing == "joined":
        said += ", of which the first, where it stands within a row, is not trained"
    return said


def device_name(device: torch.device) -> str:
    """What the device calls itself."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
