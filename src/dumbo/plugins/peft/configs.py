"""PEFT's own configuration of an adapter, from the options of `model.peft`."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora.config import EvaConfig
from peft.utils import PeftType
from pydantic import TypeAdapter, ValidationError
from torch import nn
from transformers.pytorch_utils import Conv1D

from dumbo.config.explain import unknown_name_hints
from dumbo.config.words import value_words
from dumbo.errors import ConfigError, Problem
from dumbo.plugins.peft.checks import problem
from dumbo.plugins.peft.methods import ADALORA, ALL_LINEAR, LORA, METHODS, SHARED
from dumbo.plugins.peft.new_rows import NewRows, embeddings_of
from dumbo.plugins.peft.options import PeftOptions

PROVISIONAL_STEPS = 10**9
"""AdaLoRA's number of steps until the training says how many it has."""
_OURS = frozenset(
    {"task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"}
    | {"target_modules", "fan_in_fan_out", "runtime_config", "megatron_config", "megatron_core"}
)
"""Settings that follow from the run or have options of their own."""


def base_name(model: Any) -> str:
    """Where the base model is, as an adapter names it: a folder by its full path, or a name on the hub."""
    base = Path(str(model.name_or_path))
    return str(base.resolve()) if base.exists() else str(base)


def adapter_config(model: Any, options: PeftOptions, rows: NewRows | None, revision: str | None = None) -> PeftConfig:
    """PEFT's configuration for `options`.

    Raises:
        ConfigError: a setting that the method does not have, or of another type than it takes.
    """
    where = {"base_model_name_or_path": base_name(model), "revision": revision, "task_type": "CAUSAL_LM"}
    if options.method == LORA:
        return _lora_config(model, options, rows, where)
    config_type = config_class(options.method)
    own = _settings(config_type, options)
    values = {**where, **_shared(config_type, options), **own}
    method = METHODS[options.method]
    values |= {method.names[name]: getattr(options, name) for name in method.names if name in options.written}
    if isinstance(values.get("lora_alpha"), float) or isinstance(values.get("alpha"), float):
        values |= {name: _whole(values[name]) for name in ("alpha", "lora_alpha") if name in values}
    targets = _targets(model, options, method.targets)
    if targets is not None:
        values["target_modules"] = targets
    if options.method == ADALORA:
        values["total_step"] = PROVISIONAL_STEPS
    made: PeftConfig = config_type(**values)
    return made


def config_class(method: str) -> Any:
    """The class of PEFT's configurations of `method`."""
    return PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(method.upper())]


def _lora_config(model: Any, options: PeftOptions, rows: NewRows | None, where: Mapping[str, Any]) -> LoraConfig:
    init: Any = True if options.init in ("default", "loftq") else options.init
    targets = _targets(model, options, ALL_LINEAR)
    return LoraConfig(
        **where,
        r=options.width,
        lora_alpha=scale(options),  # type: ignore[arg-type]  # it is divided by the rank, nothing else
        lora_dropout=options.dropout,
        target_modules=targets,
        exclude_modules=_words(options.exclude_modules),
        target_parameters=list(options.target_parameters) or None,
        layers_to_transform=list(options.layers_to_transform) or None,
        layers_pattern=options.layers_pattern,
        modules_to_save=list(options.modules_to_save) or None,
        bias=options.bias,
        use_rslora=options.use_rslora,
        use_dora=options.use_dora,
        init_lora_weights=init,
        eva_config=EvaConfig(rho=options.eva_rho) if init == "eva" else None,
        rank_pattern=dict(options.rank_pattern),
        alpha_pattern={pattern: _whole(alpha) for pattern, alpha in _alphas(options)},
        trainable_token_indices=dict(rows.layers) if rows else None,
        ensure_weight_tying=bool(options.modules_to_save) and is_tied(model),
    )


def _alphas(options: PeftOptions) -> Iterator[tuple[str, float]]:
    """Alpha follows the rank where it is left out, in patterns too."""
    if options.alpha is None:
        ranks = {pattern: 2.0 * rank for pattern, rank in options.rank_pattern.items()}
        yield from {**ranks, **options.alpha_pattern}.items()
    else:
        yield from options.alpha_pattern.items()


def scale(options: PeftOptions) -> float:
    """LoRA's alpha, twice the rank where it is left out; a whole number where it is one."""
    return _whole(2 * options.width if options.alpha is None else options.alpha)


def _whole(number: float) -> float:
    return int(number) if number == int(number) else number


def is_tied(model: Any) -> bool:
    """Whether the output head is the input embeddings."""
    head, embeddings = model.get_output_embeddings(), embeddings_of(model)
    return head is not None and embeddings is not None and head.weight is embeddings.weight


def _words(value: str | tuple[str, ...]) -> str | list[str] | None:
    return value if isinstance(value, str) else list(value) or None


def _targets(model: Any, options: PeftOptions, default: str | None) -> Any:
    """`target_modules` as PEFT takes it; None leaves the choice to it."""
    if "target_modules" not in options.written and default is None:
        return None
    targets = options.target_modules
    if targets == ALL_LINEAR and options.layers_to_transform:
        return linear_names(model)  # PEFT would take the whole names, and not look at the numbers
    return targets if isinstance(targets, str) else list(targets)


def linear_names(model: Any) -> list[str]:
    """The last parts of the names of all linear layers but the head."""
    head = model.get_output_embeddings()
    found = [
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]
    return list(dict.fromkeys(found))


def _shared(config_type: Any, options: PeftOptions) -> dict[str, Any]:
    """What methods have under the names that we have.

    Raises:
        ConfigError: an option that this method does not have.
    """
    fields, values = {field.name for field in dataclasses.fields(config_type)}, {}
    for name in SHARED:
        if name not in options.written:
            continue
        if name not in fields:
            raise ConfigError([problem(name, f"the method '{options.method}' does not have it", "remove it")])
        value = getattr(options, name)
        values[name] = list(value) if isinstance(value, tuple) else value
    return values


def _settings(config_type: Any, options: PeftOptions) -> dict[str, Any]:
    """The method's own settings, each of a type that it takes.

    Raises:
        ConfigError: unknown names, and values of other types.
    """
    types = typing.get_type_hints(config_type)
    shared = frozenset(SHARED) - {"bias"}
    known = [field.name for field in dataclasses.fields(config_type)]
    method = METHODS[options.method]
    taken = {*_OURS, *shared, *method.names.values(), *method.refused}
    if options.method == ADALORA:  # its class has all fields of LoRA's
        taken |= {field.name for field in dataclasses.fields(LoraConfig)} - {"init_lora_weights"}
    names = [name for name in known if name not in taken]
    problems: list[Problem] = []
    for name, value in options.settings.items():
        if name not in names:
            where = _option_for(name, known)
            hints = (where,) if where else unknown_name_hints(name, names)
            problems.append(problem("settings", f"'{options.method}' has no setting '{name}'", *hints))
            continue
        try:
            TypeAdapter(types[name]).validate_python(value, strict=True)
        except ValidationError:
            message = f"'{name}' is to be {_type_words(types[name])}, got {value_words(value)}"
            problems.append(problem("settings", message))
    if problems:
        raise ConfigError(problems)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.settings.items()}


def _option_for(name: str, known: list[str]) -> str | None:
    if name in known and name in PeftOptions.model_fields:
        return f"write it as model.peft.{name}"
    return None


def _type_words(annotation: Any) -> str:
    from pydantic.fields import FieldInfo

    from dumbo.config.words import type_words

    return type_words(FieldInfo(annotation=annotation))
