"""Loads causal language models as Transformers does, those whose zeros are left out of their files too."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedConfig
from transformers.utils import GENERATION_CONFIG_NAME

from dumbo.bridge.zero_bitmasks import whole_tensors
from dumbo.left_out_zeros import leaves_zeros_out, without_section


def from_pretrained(name: str, folder: Path | None, **options: Any) -> Any:
    """What `AutoModelForCausalLM.from_pretrained(name, **options)` returns.

    `folder` holds the files of `name`, if they are on this machine. Where zeros are left out of these, the weights are
    put together first, and the model is made of them as of any others: nothing of it tells how they were stored.

    Raises:
        RunError: a part of a weight is missing or damaged, or is stored in a format that is not read.
    """
    if folder is None or not leaves_zeros_out(folder):
        return AutoModelForCausalLM.from_pretrained(name, **options)
    config = options.pop("config", None) or AutoConfig.from_pretrained(folder, **_of_code(options))
    config = without_section(copy.deepcopy(config))
    # There is no name to go by beside tensors: what Transformers would find by it is given, or put right afterwards.
    if (folder / GENERATION_CONFIG_NAME).is_file():
        options["generation_config"] = GenerationConfig.from_pretrained(folder)
    tensors = {found.name: found.value for found in whole_tensors(folder)}
    kind = _class_of(config, options)
    if isinstance(kind.config_class, type) and not isinstance(config, kind.config_class):
        config = config.get_text_config()
    loaded: Any = kind.from_pretrained(None, config=config, state_dict=tensors, **options)
    model = loaded[0] if options.get("output_loading_info") else loaded
    model.name_or_path = model.config.name_or_path = name
    return loaded


def _class_of(config: PreTrainedConfig, options: dict[str, Any]) -> Any:
    with torch.device("meta"):
        return type(AutoModelForCausalLM.from_config(config, **_of_code(options)))  # type: ignore[no-untyped-call]


def _of_code(options: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key == "trust_remote_code"}
