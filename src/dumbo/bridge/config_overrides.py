"""Replaces values of a model's own configuration, and makes sure that each one took effect."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dumbo.errors import ConfigError, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

KEY = ("model", "config_overrides")
ROPE_SCALARS = ("rope_theta", "partial_rotary_factor")
ELSEWHERE = MappingProxyType(
    {
        "attn_implementation": "write it as model.attention",
        "dtype": "write it as model.dtype",
        "torch_dtype": "write it as model.dtype",
        "model_type": "another type of model is another base model",
        "architectures": "the causal language model of the type is always loaded",
        "transformers_version": "it is set when the model is saved",
    }
)


def override(config: PreTrainedConfig, overrides: Mapping[str, Any]) -> PreTrainedConfig:
    """Return `config` with `overrides`; a dictionary is merged into the one that is there, key by key.

    Older names (`rope_theta`, `rope_scaling`, `n_layer`) are taken for the newer ones. ConfigError for unknown names,
    wrong types, and values that the model's configuration refuses or does not keep.
    """
    if not overrides:
        return config
    new = _made(config, overrides, KEY, lambda old, wanted: type(config).from_dict(_merged(old, wanted)))
    new.name_or_path = config.name_or_path
    return new


def configure_new(default: PreTrainedConfig, values: Mapping[str, Any], key: tuple[str, ...]) -> PreTrainedConfig:
    """Return a configuration of the kind of `default` made of `values`, which are written at `key`.

    What follows from them, such as the size of a head, follows from these values and not from the default ones.
    """

    def make(old: Mapping[str, Any], wanted: Mapping[str, Any]) -> PreTrainedConfig:
        whole = {name: _merged(old, wanted)[name] for name in wanted}
        return type(default)(**whole)

    return _made(default, values, key, make)


def _made(
    config: PreTrainedConfig,
    values: Mapping[str, Any],
    key: tuple[str, ...],
    make: Callable[[Mapping[str, Any], Mapping[str, Any]], PreTrainedConfig],
) -> PreTrainedConfig:
    old = config.to_dict()
    wanted = _modern(config, values, old, key)
    problems = [*_unknown(config, wanted, old, key)]
    if problems:
        raise ConfigError(problems)
    try:
        new = make(old, wanted)
    except Exception as error:  # Each configuration class checks its values in its own way.
        raise ConfigError([Problem(f"the model refuses them: {_last_line(error)}", key)]) from error
    lost = [*_lost(new.to_dict(), wanted, key)]
    if lost:
        raise ConfigError(lost)
    return new


def _modern(
    config: PreTrainedConfig, overrides: Mapping[str, Any], old: Mapping[str, Any], key: tuple[str, ...]
) -> dict[str, Any]:
    """The overrides under the names that the configuration stores."""
    names = dict(config.attribute_map)
    if "rope_parameters" in old and "rope_scaling" not in old:
        names["rope_scaling"] = "rope_parameters"
    wanted: dict[str, Any] = {}
    for name, value in overrides.items():
        real = names.get(name, name)
        if real in wanted:
            raise ConfigError([Problem(f"'{name}' and another name of it are both set", (*key, name))])
        wanted[real] = value
    for name in ROPE_SCALARS:
        if name in wanted and name not in old and isinstance(old.get("rope_parameters"), dict):
            wanted["rope_parameters"] = _rope_with(wanted, name, old["rope_parameters"], key)
            del wanted[name]
    return wanted


def _rope_with(wanted: Mapping[str, Any], name: str, old: dict[str, Any], key: tuple[str, ...]) -> dict[str, Any]:
    layers = _rope_layers(old)
    if layers:
        example = f"rope_parameters: {{{layers[0]}: {{{name}: {wanted[name]}}}}}"
        message = "this model has other rotary embeddings for each kind of layer"
        raise ConfigError([Problem(message, (*key, name), hints=(f"write e.g. {example}",))])
    beside = wanted.get("rope_parameters") or {}
    if name in beside:
        raise ConfigError([Problem("is set twice, here and in rope_parameters", (*key, name))])
    return {**beside, name: wanted[name]}


def _rope_layers(rope_parameters: Mapping[str, Any]) -> list[str]:
    """The kinds of layers that have parameters of their own; none where all layers share them."""
    return [name for name, value in rope_parameters.items() if isinstance(value, dict)]


def _unknown(
    config: PreTrainedConfig, wanted: Mapping[str, Any], old: Mapping[str, Any], path: tuple[str, ...]
) -> Iterator[Problem]:
    """Names that the configuration does not have, also in the configurations inside it (`text_config`)."""
    names = {name for name in (*old, *config.attribute_map) if not name.startswith("_")}
    for name, value in wanted.items():
        here = (*path, name)
        if name in ELSEWHERE:
            yield Problem("cannot be overridden", here, hints=(ELSEWHERE[name],))
        elif name not in names:
            yield _unknown_name(name, names, here, type(config).__name__)
        elif name == "rope_parameters" and isinstance(value, dict):
            yield from _unknown_rope(config, value, old.get(name) or {}, here)
        elif isinstance(value, dict) and hasattr(getattr(config, name, None), "to_dict"):
            inner = getattr(config, name)
            if hasattr(inner, "attribute_map"):
                yield from _unknown(inner, value, inner.to_dict(), here)


def _unknown_rope(
    config: PreTrainedConfig, wanted: Mapping[str, Any], old: dict[str, Any], path: tuple[str, ...]
) -> Iterator[Problem]:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RopeParameters

    layers = _rope_layers(old)
    names = {*RopeParameters.__annotations__, *old, "type"}
    types = {"default", *ROPE_INIT_FUNCTIONS}
    for name, value in wanted.items():
        if name not in names:
            yield _unknown_name(name, names, (*path, name), "rope_parameters")
        elif name in layers and isinstance(value, dict):
            yield from _unknown_rope(config, value, {}, (*path, name))
        elif name in ("rope_type", "type") and value not in types and value != old.get("rope_type"):
            yield Problem(f"'{value}' is none of {', '.join(sorted(types))}", (*path, name))


def _unknown_name(name: str, names: set[str], path: tuple[str, ...], owner: str) -> Problem:
    near = difflib.get_close_matches(name, names, n=3)
    hints = (f"did you mean {' or '.join(repr(other) for other in near)}?",) if near else ()
    return Problem(f"{owner} has no such value", path, hints=hints)


def _merged(old: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for name, value in wanted.items():
        before = old.get(name)
        both = isinstance(value, Mapping) and isinstance(before, Mapping)
        merged[name] = _merged(before, value) if both else value  # type: ignore[arg-type]
    return merged


def _lost(new: Mapping[str, Any], wanted: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[Problem]:
    """Values that the configuration took without keeping them."""
    for name, value in wanted.items():
        kept = new.get(name)
        if isinstance(value, Mapping) and isinstance(kept, Mapping):
            yield from _lost(kept, value, (*path, name))
        elif kept != value:
            yield Problem(f"the model's configuration turned {value!r} into {kept!r}", (*path, name))


def _last_line(error: Exception) -> str:
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return text.strip().splitlines()[-1].strip() if text.strip() else type(error).__name__
