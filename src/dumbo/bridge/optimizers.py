"""Optimizers and schedules by their names in Transformers, and which of the arguments they really use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

from dumbo.config.arguments import TrainerArguments
from dumbo.config.explain import unknown_name_hints
from dumbo.errors import Problem

if TYPE_CHECKING:
    from transformers import TrainingArguments

FAMILIAR_OPTIMIZERS = frozenset({"adamw_torch", "adamw_torch_fused", "sgd", "adafactor"})
FAMILIAR_SCHEDULES = frozenset({"linear", "cosine", "constant", "constant_with_warmup", "polynomial"})
"""Names that are checked without importing Transformers, which takes seconds."""


def name_problems(arguments: TrainerArguments) -> Iterator[Problem]:
    """Names of optimizers and schedules that the installed Transformers does not know."""
    if arguments.optim not in FAMILIAR_OPTIMIZERS:
        from transformers.training_args import OptimizerNames

        yield from _unknown("optim", arguments.optim, [name.value for name in OptimizerNames])
    if arguments.lr_scheduler_type not in FAMILIAR_SCHEDULES:
        from transformers.trainer_utils import SchedulerType

        yield from _unknown("lr_scheduler_type", arguments.lr_scheduler_type, [name.value for name in SchedulerType])


def _unknown(key: str, name: str, known: list[str]) -> Iterator[Problem]:
    if name not in known:
        yield Problem(f"'{name}' is not known", ("trainer", "arguments", key), hints=unknown_name_hints(name, known))


def optimizer_problems(ours: TrainerArguments, theirs: TrainingArguments, model: Any) -> Iterator[Problem]:
    """What is wrong with the optimizer that the arguments name, found by asking Transformers how it would make it."""
    from transformers import Trainer

    try:
        Trainer.get_optimizer_cls_and_kwargs(theirs, model)
    except (ImportError, ValueError, TypeError) as error:
        yield Problem(f"cannot be made here: {error}", ("trainer", "arguments", "optim"))
        return
    yield from _unused_by_optimizer(ours, theirs, model)


def schedule_problems(theirs: TrainingArguments, total_steps: int) -> Iterator[Problem]:
    """What is wrong with the schedule that the arguments name, found by making one for a parameter of no use."""
    import torch
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=theirs.learning_rate)
    try:
        get_scheduler(
            theirs.lr_scheduler_type,
            optimizer,
            num_warmup_steps=theirs.get_warmup_steps(total_steps),
            num_training_steps=total_steps,
            scheduler_specific_kwargs=cast("Any", theirs.lr_scheduler_kwargs),
        )
    except (ValueError, TypeError) as error:
        yield Problem(f"the schedule cannot be made: {error}", ("trainer", "arguments", "lr_scheduler_kwargs"))


def _unused_by_optimizer(ours: TrainerArguments, theirs: TrainingArguments, model: Any) -> Iterator[Problem]:
    """Arguments that the user wrote and the chosen optimizer does not take: found by leaving each of them out."""
    from transformers import Trainer

    def made(arguments: TrainingArguments) -> str:
        return repr(Trainer.get_optimizer_cls_and_kwargs(arguments, model))

    for name in ("adam_beta1", "adam_beta2", "adam_epsilon", "optim_args"):
        default: Any = TrainerArguments.model_fields[name].default
        value = getattr(ours, name)
        if name not in ours.model_fields_set or value == default:
            continue
        setattr(theirs, name, default)
        without = made(theirs)
        setattr(theirs, name, value)
        if made(theirs) == without:
            message = f"the optimizer '{ours.optim}' does not take this"
            yield Problem(message, ("trainer", "arguments", name), hints=("remove it, or choose another optim",))
