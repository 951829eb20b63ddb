"""Optimizers and schedules by their names in Transformers, and which of the arguments they really use."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from dumbo.config.arguments import TrainerArguments
from dumbo.config.explain import unknown_name_hints
from dumbo.errors import Problem

if TYPE_CHECKING:
    from transformers import TrainingArguments

OF_PACKAGES = MappingProxyType(
    {
        **dict.fromkeys(("adamw_torch_8bit", "adamw_torch_4bit"), "torchao"),
        **dict.fromkeys(("adamw_8bit", "adamw_bnb_8bit", "ademamix", "ademamix_8bit"), "bitsandbytes"),
        **dict.fromkeys(("lion_32bit", "lion_8bit", "rmsprop_bnb"), "bitsandbytes"),
        **dict.fromkeys(("rmsprop_bnb_8bit", "rmsprop_bnb_32bit"), "bitsandbytes"),
        **{f"paged_{kind}_{bits}bit": "bitsandbytes" for kind in ("adamw", "ademamix", "lion") for bits in (8, 32)},
    }
)
"""Optimizers that are brought by a package, which is the extra of that name."""
FAMILIAR_OPTIMIZERS = frozenset({"adamw_torch", "adamw_torch_fused", "sgd", "adafactor", *OF_PACKAGES})
FAMILIAR_SCHEDULES = frozenset({"linear", "cosine", "constant", "constant_with_warmup", "polynomial"})
"""Names that are checked without importing Transformers, which takes seconds."""


def name_problems(arguments: TrainerArguments) -> Iterator[Problem]:
    """Names of optimizers and schedules that the installed Transformers does not know, or that have no package here."""
    package = OF_PACKAGES.get(arguments.optim)
    if package is not None and importlib.util.find_spec(package) is None:
        message = f"'{arguments.optim}' needs the package {package}"
        yield _of_optim(message, f"pip install 'dumbo-trainer[{package}]'")
    if arguments.use_cpu:
        yield from _paged(arguments.optim)
    if arguments.optim not in FAMILIAR_OPTIMIZERS:
        from transformers.training_args import OptimizerNames

        yield from _unknown("optim", arguments.optim, [name.value for name in OptimizerNames])
    if arguments.lr_scheduler_type not in FAMILIAR_SCHEDULES:
        from transformers.trainer_utils import SchedulerType

        yield from _unknown("lr_scheduler_type", arguments.lr_scheduler_type, [name.value for name in SchedulerType])


def _of_optim(message: str, *hints: str) -> Problem:
    return Problem(message, ("trainer", "arguments", "optim"), hints=hints)


def _paged(name: str) -> Iterator[Problem]:
    """bitsandbytes makes them ordinary ones on a CPU, with a warning."""
    if name.startswith("paged_"):
        message = f"'{name}' moves its state between the memories of a GPU and the machine, and this run is on the CPU"
        yield _of_optim(message, f"write {name.removeprefix('paged_').replace('adamw_32bit', 'adamw_torch_fused')}")


def _unknown(key: str, name: str, known: list[str]) -> Iterator[Problem]:
    if name not in known:
        yield Problem(f"'{name}' is not known", ("trainer", "arguments", key), hints=unknown_name_hints(name, known))


def optimizer_problems(ours: TrainerArguments, theirs: TrainingArguments, model: Any) -> Iterator[Problem]:
    """What is wrong with the optimizer that the arguments name, found by asking Transformers how it would make it."""
    from transformers import Trainer

    if theirs.device.type == "cpu" and not ours.use_cpu:  # which was looked at before
        yield from _paged(ours.optim)
    try:
        Trainer.get_optimizer_cls_and_kwargs(theirs, model)
    except (ImportError, ValueError, TypeError) as error:
        yield _of_optim(f"cannot be made here: {error}")
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
