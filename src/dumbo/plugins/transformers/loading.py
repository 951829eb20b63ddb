"""Loads a causal language model: all of its weights, in the type asked for, or not at all."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from dumbo.bridge.causal_models import from_pretrained
from dumbo.bridge.config_overrides import override
from dumbo.bridge.pickles import Permission, PickleRefused, pickles_to_read
from dumbo.bridge.quantized_base import quantized_modules, value_count
from dumbo.config.schema import RunConfig
from dumbo.errors import ConfigError, PluginError, Problem
from dumbo.plugins.transformers.attention import attention_problem
from dumbo.plugins.transformers.causality import is_encoder
from dumbo.plugins.transformers.folders import model_folder_problem, name_problem, place_of
from dumbo.plugins.transformers.hub import Source, fetch
from dumbo.plugins.transformers.load_errors import explain_loading
from dumbo.plugins.transformers.trust import say_code, say_unused_code
from dumbo.plugins.transformers.weights import check_files, listed, loading_problem, missing_weights, say_unexpected

DTYPES = MappingProxyType(
    {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
)
OWN_OPTIONS = frozenset(
    {
        "adapter_kwargs",
        "config",
        "ignore_mismatched_sizes",
        "output_loading_info",
        "revision",
        "trust_remote_code",
        "use_safetensors",
        "weights_only",
    }
)
"""Arguments of `from_pretrained` that no other plugin may set."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class ModelRequest:
    """A model to load, and how. `key` is the option that names it, or empty."""

    name: str
    key: str
    revision: str | None = None
    dtype: str = "auto"
    attention: str = "auto"
    trusted: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Arguments for `from_pretrained` that other plugins ask for."""
    pickles: tuple[str, ...] = ()
    """Files that may be read though they are pickles."""

    @classmethod
    def of_run(cls, config: RunConfig, extra: Mapping[str, Any]) -> ModelRequest:
        """The run's own model."""
        model = config.model
        if not model.base_model:
            raise ConfigError.at("model.base_model", "a model to start from is missing")
        return cls(
            name=model.base_model,
            key="model.base_model",
            revision=model.revision,
            dtype=model.dtype,
            attention=model.attention,
            trusted=model.trust_remote_code,
            overrides=model.config_overrides,
            extra=extra,
            pickles=model.allow_pickle,
        )

    @classmethod
    def of_other(cls, name: str, config: RunConfig, extra: Mapping[str, Any]) -> ModelRequest:
        """Another model of the same run, in its own configuration and newest revision."""
        model = config.model
        return cls(
            name, key="", dtype=model.dtype, attention=model.attention, trusted=model.trust_remote_code, extra=extra
        )

    def problem(self, message: str, *hints: str) -> Problem:
        """A problem of the model's name."""
        return Problem(message, place_of(self.key), hints=hints)


def load_model(request: ModelRequest, say: Say) -> PreTrainedModel:
    """Return the model on the CPU, in evaluation mode, with every weight from the checkpoint.

    Raises ConfigError for what the configuration can mend, RunError for what is wrong with hub, network or files.
    """
    source = find_model(request)
    config = read_config(source, request)
    problem = attention_problem(request.attention)
    if problem:
        raise ConfigError([problem])
    options = load_options(request)
    say_code(source.folder, "config.json", request.name, request.trusted, say)
    try:
        loaded: Any = _from_pretrained(
            source,
            config=config,
            trust_remote_code=request.trusted,
            use_safetensors=not source.pickles,
            weights_only=True,  # of a pickle, the tensors
            ignore_mismatched_sizes=True,  # The report names all of them with their shapes; an exception names none.
            output_loading_info=True,
            adapter_kwargs={"local_files_only": True},  # That there is no adapter was made sure of.
            **source.load_kwargs(request.trusted),
            **options,
        )
    except Exception as error:
        raise explained(error, source, request) from error
    model: PreTrainedModel
    model, info = loaded
    judge(info, request)
    judge_quantization(model, request)
    say_unexpected(info, say)
    if source.pickles:
        say(f"model: only the tensors were read of the pickles {listed(source.pickles)}, and no code of theirs was run")
    say(described(model, request))
    if not request.trusted:
        say_unused_code(source.folder, "config.json", request.name, model, say)
    return model


def _from_pretrained(source: Source, **options: Any) -> Any:
    with warnings.catch_warnings():
        # That a model is stored quantized as was asked for is right, and otherwise an error of the plugin that asked.
        warnings.filterwarnings("ignore", "You passed `quantization_config`", UserWarning)
        return from_pretrained(source.name, source.folder, **options)


def find_model(request: ModelRequest) -> Source:
    """Return the model's files, having made sure that they are those of a whole model, in safetensors unless the user
    has named other files."""
    problem = name_problem(request.name, request.key)
    if problem:
        raise ConfigError([problem])
    source = fetch(
        request.name, request.revision, request.key, weights=True, trusted=request.trusted, pickles=request.pickles
    )
    problem = model_folder_problem(source.folder, request.name, request.key)
    if problem:
        raise ConfigError([problem])
    pickles = find_pickles(source.folder, request)
    if pickles:
        return replace(source, pickles=pickles)
    without = missing_weights(source.folder)
    if without:
        message, hints = without
        raise ConfigError([request.problem(f"'{request.name}' {message}", *hints)])
    check_files(source.folder)
    return source


def find_pickles(folder: Path, request: ModelRequest) -> tuple[str, ...]:
    """The files that the weights are read from, where there are no safetensors and the user has named them all.

    Raises:
        ConfigError: a pickle is not named, or one is named that is not read.
        RunError: one holds more than tensors.
    """
    try:
        found = pickles_to_read(folder, Permission(request.pickles, "model.allow_pickle: [NAMES]"))
    except PickleRefused as error:
        message, *hints = error.args
        raise ConfigError([request.problem(f"'{request.name}' {message}", *hints)]) from error
    unread = [name for name in request.pickles if not Permission((name,), "").covers_any(found)]
    if unread:
        message = f"'{unread[0]}' is allowed for nothing: no weights of '{request.name}' are read from it"
        raise ConfigError.at("model.allow_pickle", message, "leave it out")
    return found


def read_config(source: Source, request: ModelRequest) -> PreTrainedConfig:
    """Return the model's configuration with the overrides."""
    try:
        config = AutoConfig.from_pretrained(
            source.name, trust_remote_code=request.trusted, **source.load_kwargs(request.trusted)
        )
    except Exception as error:
        raise explained(error, source, request) from error
    config = override(config, request.overrides)
    if is_encoder(config):
        raise ConfigError(
            [
                request.problem(
                    f"'{request.name}' is an encoder ({config.model_type}): it sees the tokens that it is to predict",
                    "to train it as a decoder: model.config_overrides: {is_decoder: true}",
                )
            ]
        )
    return config


def explained(error: Exception, source: Source, request: ModelRequest) -> Exception:
    """What to raise for `error`: what tells the user what to do, or `error` itself where it is no user's doing."""
    overridden = bool(request.overrides)
    found = explain_loading(
        error, source, request.name, request.key, attention=request.attention, overridden=overridden
    )
    return found or error


def load_options(request: ModelRequest) -> dict[str, Any]:
    """Return the arguments for `from_pretrained` that the run or its plugins chose; a disagreement is an error."""
    chosen: dict[str, Any] = {"dtype": DTYPES[request.dtype]}
    asked = {"dtype": (request.dtype, chosen["dtype"]), "attn_implementation": (request.attention, request.attention)}
    if request.attention != "auto":
        chosen["attn_implementation"] = request.attention
    for name, value in request.extra.items():
        if name in OWN_OPTIONS:
            raise PluginError(f"a plugin sets '{name}' for the loading of the model, which is not its to set")
        written, ours = asked.get(name, ("auto", value))
        if written != "auto" and ours != value:
            key = "model.dtype" if name == "dtype" else "model.attention"
            raise ConfigError.at(key, f"is '{written}', but a plugin asks for {value!r}", "leave one of them out")
        chosen[name] = value
    return chosen


def judge(info: Mapping[str, Any], request: ModelRequest) -> None:
    """Refuse a model with weights that did not come from the checkpoint."""
    found = loading_problem(info, bool(request.overrides))
    if found is None:
        return
    message, hints = found
    if request.overrides:
        raise ConfigError([Problem(message, ("model", "config_overrides"), hints=hints)])
    raise ConfigError([request.problem(f"'{request.name}': {message}", *hints)])


def judge_quantization(model: PreTrainedModel, request: ModelRequest) -> None:
    """Refuse a model that is stored quantized where no plugin makes it ready for training."""
    if not quantized_modules(model) or "quantization_config" in request.extra:
        return
    method: Any = getattr(model.config.quantization_config, "quant_method", None)
    by = getattr(method, "value", method)
    known = by in ("bitsandbytes", "torchao")
    hint = f"add {by} and peft under plugins" if known else "take the model as it was before"
    raise ConfigError([request.problem(f"'{request.name}' is stored quantized, by {by}", hint)])


def described(model: PreTrainedModel, request: ModelRequest) -> str:
    """One line about what was loaded, with what `auto` chose."""
    count = sum(value_count(parameter) for parameter in model.parameters())
    dtype = str(model.dtype).removeprefix("torch.")
    dtype += " and quantized" if quantized_modules(model) else ""
    attention = getattr(model.config, "_attn_implementation", None)
    size = f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.2f}M"
    return f"model: {request.name} ({type(model).__name__}), {size} parameters in {dtype}, attention {attention}"
