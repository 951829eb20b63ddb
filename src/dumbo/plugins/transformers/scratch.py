"""Builds a causal language model of random weights from the values of its configuration."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from dumbo.bridge.config_overrides import configure_new
from dumbo.config.schema import RunConfig
from dumbo.errors import ConfigError, PluginError, Problem
from dumbo.plugins.transformers.attention import attention_problem
from dumbo.plugins.transformers.causality import is_encoder
from dumbo.plugins.transformers.loading import DTYPES

KEY = ("model", "architecture")
IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")
"""Of what plugins ask for in the loading of weights, what a model without any can have, too."""
TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")


def build_model(config: RunConfig, extra: Mapping[str, Any], say: Callable[[str], None]) -> PreTrainedModel:
    """Return a model on the CPU, its weights drawn by its own initialiser from torch's generator.

    Without a `vocab_size` it has the fewest rows of embeddings that its configuration allows; the run adds one for
    every token. `extra` is what plugins ask for in the loading of weights.

    Raises:
        ConfigError: a model type or value that Transformers does not know, or sizes that do not fit each other.
    """
    chosen = _implementations(config, extra)
    architecture = read_architecture(config.model.architecture)
    torch.manual_seed(config.trainer.seed)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            architecture, dtype=DTYPES[config.model.dtype], **chosen
        )
        if "attn_implementation" not in chosen:  # one that was asked for may need a device that the model is not on yet
            _try_sizes(model)
    except Exception as error:  # each model checks its sizes in its own way, many not before they meet
        problem = _attention_refused(config, error)
        raise ConfigError([problem or Problem(f"no model can be made of it: {_first_line(error)}", KEY)]) from error
    used = getattr(model.config, "_attn_implementation", None)
    kind = str(model.dtype).removeprefix("torch.")
    say(f"model: {type(model).__name__} with random weights in {kind}, attention {used}")
    return model


def read_architecture(values: Mapping[str, Any]) -> PreTrainedConfig:
    """The configuration of a new model.

    Raises:
        ConfigError: a model type or a value that Transformers does not know.
    """
    wanted = dict(values)
    model_type = str(wanted.pop("model_type"))
    if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        known = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        near = difflib.get_close_matches(model_type, known, n=3)
        hint = f"did you mean {' or '.join(repr(name) for name in near)}?" if near else f"e.g. {', '.join(known[:8])}"
        message = f"Transformers has no language model of the type '{model_type}'"
        if model_type in CONFIG_MAPPING:
            message = f"'{model_type}' is no causal language model"
        raise ConfigError([Problem(message, (*KEY, "model_type"), hints=(hint,))])
    default = AutoConfig.for_model(model_type)
    if "vocab_size" not in wanted and hasattr(default, "vocab_size"):
        ids = [wanted.get(name, getattr(default, name, None)) for name in TOKEN_IDS]
        flat = [token for value in ids for token in (value if isinstance(value, list) else [value])]
        wanted["vocab_size"] = 1 + max((token for token in flat if isinstance(token, int)), default=0)
    config = configure_new(default, wanted, KEY)
    if is_encoder(config):
        message = f"'{model_type}' is an encoder: it sees the tokens that it is to predict"
        raise ConfigError([Problem(message, KEY, hints=("to train it as a decoder: is_decoder: true",))])
    return config


def _try_sizes(model: PreTrainedModel) -> None:
    """Raise what the model raises where its sizes do not fit each other: many find that out when they are used."""
    with torch.no_grad():
        model.train(False)
        model(input_ids=torch.zeros((1, 2), dtype=torch.long))


def _implementations(config: RunConfig, extra: Mapping[str, Any]) -> dict[str, Any]:
    problem = attention_problem(config.model.attention)
    if problem:
        raise ConfigError([problem])
    chosen = {} if config.model.attention == "auto" else {"attn_implementation": config.model.attention}
    for name, value in extra.items():
        if name not in IMPLEMENTATIONS:
            raise PluginError(f"a plugin sets '{name}' for the loading of weights, and this model's are random")
        if chosen.get(name, value) != value:
            message = f"is '{config.model.attention}', but a plugin asks for {value!r}"
            raise ConfigError.at("model.attention", message, "leave one of them out")
        chosen[name] = value
    return chosen


def _attention_refused(config: RunConfig, error: Exception) -> Problem | None:
    if config.model.attention != "auto" and "attention" in str(error).lower():
        return Problem(f"cannot be used: {_first_line(error)}", ("model", "attention"))
    return None


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
