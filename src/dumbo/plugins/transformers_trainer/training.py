"""The heavy half: a job becomes a `DumboTrainer`, and says what was chosen for `auto`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from dumbo.bridge.optimizers import unused_by_optimizer
from dumbo.bridge.trainer import DumboTrainer
from dumbo.bridge.training_args import training_arguments
from dumbo.errors import ConfigError, RunError
from dumbo.job import Job, TrainResult
from dumbo.plugin_loader import Services


@dataclass(frozen=True)
class TransformersRun:
    """A trainer in the sense of `dumbo.job.Trainer`."""

    trainer: DumboTrainer

    def train(self) -> TrainResult:
        """Train to the end, or to the user's interrupt."""
        return self.trainer.train_to_end()

    def save_model(self, folder: Path) -> None:
        """Write model and tokenizer."""
        self.trainer.save(folder)


def build(job: Job, services: Services) -> TransformersRun:
    """Make the trainer.

    Raises:
        RunError: this machine cannot do what the arguments ask for.
        ConfigError: an argument that the optimizer does not take.
    """
    ours = job.config.trainer.arguments
    try:
        theirs = training_arguments(job.config, job.output_dir, services.world_size, job.eval_dataset is not None)
    except (ValueError, ImportError, RuntimeError) as error:
        raise RunError(f"trainer.arguments cannot be used on this machine: {error}") from error
    if job.build_optimizer is None:
        try:
            problems = list(unused_by_optimizer(ours, theirs, job.model))
        except (ValueError, ImportError) as error:
            raise RunError(f"the optimizer '{ours.optim}' cannot be made here: {error}") from error
        if problems:
            raise ConfigError(problems)
    trainer = DumboTrainer(job, theirs)
    _say_what_was_chosen(trainer, services)
    return TransformersRun(trainer)


def _say_what_was_chosen(trainer: DumboTrainer, services: Services) -> None:
    theirs = trainer.args
    compute = "bfloat16" if theirs.bf16 else "float16" if theirs.fp16 else str(trainer.model.dtype).removeprefix("torch.")
    attention = getattr(trainer.model.config, "_attn_implementation", None) or "the model's own"
    services.say(f"on {theirs.device}, computing in {compute}, attention {attention}")
    accumulated = theirs.gradient_accumulation_steps
    services.say(
        f"{trainer._job.config.trainer.arguments.batch_size} sequences per step = {theirs.per_device_train_batch_size} per pass"
        f" x {accumulated} accumulated x {services.world_size} {'process' if services.world_size == 1 else 'processes'}"
    )
    if torch.cuda.device_count() > 1 and services.world_size == 1 and not theirs.use_cpu:
        count = torch.cuda.device_count()
        services.say(f"{count} GPUs are here and one is used; torchrun --nproc-per-node {count} -m dumbo ... uses them all")
