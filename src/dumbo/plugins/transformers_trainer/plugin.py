"""Trains on one device or, under torchrun, on many, with Transformers' Trainer underneath."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dumbo.config.arguments import TrainerArguments
from dumbo.config.schema import RunConfig
from dumbo.errors import ConfigError, Problem
from dumbo.metrics import evaluation_path, higher_is_better
from dumbo.plugin_loader import TrainerPlugin

if TYPE_CHECKING:
    from dumbo.job import Job, Trainer


class TransformersTrainerPlugin(TrainerPlugin):
    """Takes all of `trainer.arguments`."""

    name = "transformers_trainer"
    packages = ("torch", "transformers", "accelerate")
    resumes = True
    consumes = frozenset(f"trainer.arguments.{name}" for name in TrainerArguments.model_fields)

    def check(self, config: RunConfig) -> None:
        """Refuse what would have no effect, and names that nobody knows."""
        from dumbo.bridge.optimizers import name_problems

        problems = [*_without_effect(config), *_spike_problems(config), *name_problems(config.trainer.arguments)]
        if problems:
            raise ConfigError(problems)

    def build_trainer(self, job: Job) -> Trainer:
        """Wire the job up."""
        from dumbo.plugins.transformers_trainer.training import build

        return build(job, self.services)


def _spike_problems(config: RunConfig) -> Iterator[Problem]:
    """Ways back that lead nowhere."""
    faults, trainer = config.trainer.faults, config.trainer
    steps = trainer.arguments.max_steps
    if faults.on_spike == "rollback" and steps is not None:
        yield from too_few_steps(steps)
    if "spike_factor" in faults.model_fields_set and faults.on_spike == "ignore":
        hint = "it needs trainer.faults.on_spike: rollback"
        yield Problem("has no effect here", ("trainer", "faults", "spike_factor"), hints=(hint,))
    if (
        faults.on_spike == "rollback"
        and trainer.arguments.save_strategy == "no"
        and not trainer.checkpoints.every_minutes
    ):
        message = "there are no checkpoints to go back to"
        hint = "set trainer.arguments.save_strategy, or trainer.checkpoints.every_minutes"
        yield Problem(message, ("trainer", "faults", "on_spike"), hints=(hint,))


def too_few_steps(total: int) -> Iterator[Problem]:
    """A problem where a run of `total` steps has none of which it can be told that its loss leaps."""
    from dumbo.bridge.spikes import LEAST

    if total <= LEAST:
        message = f"has no effect here: none of the first {LEAST} steps is a leap, and the run has {total}"
        yield Problem(message, ("trainer", "faults", "on_spike"), hints=("remove it, or train for more steps",))


def _without_effect(config: RunConfig) -> Iterator[Problem]:
    """A problem for each argument that another one makes meaningless."""
    arguments, evaluates = config.trainer.arguments, config.holds_rows_out
    nothing = "no rows are held out; set trainer.data.val_set_size, or held_out: true for a source"
    saves = arguments.save_strategy
    checkpointing = arguments.gradient_checkpointing is True
    rules = [
        (
            "eval_strategy",
            evaluates or arguments.eval_strategy == "no",
            nothing,
        ),
        ("eval_steps", arguments.eval_strategy == "steps", "it needs eval_strategy: steps"),
        ("eval_delay", evaluates, nothing),
        ("eval_on_start", evaluates, nothing),
        ("per_device_eval_batch_size", evaluates, nothing),
        ("load_best_model_at_end", evaluates or not arguments.load_best_model_at_end, nothing),
        ("metric_for_best_model", arguments.load_best_model_at_end, "it needs load_best_model_at_end: true"),
        ("greater_is_better", arguments.load_best_model_at_end, "it needs load_best_model_at_end: true"),
        ("save_steps", saves == "steps", "it needs save_strategy: steps"),
        ("save_total_limit", saves != "no", "it needs a save_strategy"),
        ("warmup_steps", arguments.lr_scheduler_type != "constant", "use lr_scheduler_type: constant_with_warmup"),
        ("gradient_checkpointing_kwargs", checkpointing, "it needs gradient_checkpointing: true"),
        ("dataloader_persistent_workers", arguments.dataloader_num_workers > 0, "it needs dataloader_num_workers"),
        ("dataloader_prefetch_factor", arguments.dataloader_num_workers > 0, "it needs dataloader_num_workers"),
        ("fp16", not (arguments.fp16 and arguments.bf16 is True), "bf16 is on too; choose one"),
    ]
    for name, acts, reason in rules:
        if name in arguments.model_fields_set and not acts:
            yield Problem("has no effect here", ("trainer", "arguments", name), hints=(reason,))
    if evaluates and arguments.eval_strategy == "no":
        message = "rows are held out and never used: eval_strategy is 'no'"
        held = [index for index, entry in enumerate(config.datasets) if entry.held_out]
        path = ("datasets", held[0], "held_out") if held else ("trainer", "data", "val_set_size")
        yield Problem(message, path, hints=("remove one of the two",))
    best = evaluation_path(arguments.metric_for_best_model)
    if arguments.load_best_model_at_end and arguments.greater_is_better is None and higher_is_better(best) is None:
        message = f"whether more or less of '{best}' is better is not known"
        path = ("trainer", "arguments", "metric_for_best_model")
        yield Problem(message, path, hints=("write greater_is_better: true, or greater_is_better: false",))
    if arguments.eval_strategy == "steps" and arguments.eval_steps is None:
        yield Problem("needs eval_steps", ("trainer", "arguments", "eval_strategy"))
