"""The heavy half: the options as Transformers has them, and what came of them."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BitsAndBytesConfig, PreTrainedModel

from dumbo.bridge import quantized_loading
from dumbo.bridge.quantized_loading import computed_type, describe_quantized, left_alone, plain_type
from dumbo.config.schema import RunConfig
from dumbo.errors import ConfigError
from dumbo.plugins.bitsandbytes.plugin import BitsAndBytesOptions

SECTION = "model.bitsandbytes"


def load_options(options: BitsAndBytesOptions, config: RunConfig) -> dict[str, Any]:
    """Arguments for `from_pretrained`."""
    make: Any = BitsAndBytesConfig
    skipped = left_alone(options.skip_modules, options.quantize_head)
    if options.bits == 8:
        threshold = float(options.threshold)
        made = make(load_in_8bit=True, llm_int8_threshold=threshold, llm_int8_skip_modules=skipped)
    else:
        made = make(
            load_in_4bit=True,
            llm_int8_skip_modules=skipped,
            bnb_4bit_quant_type=options.quant_type,
            bnb_4bit_use_double_quant=options.double_quant,
            bnb_4bit_compute_dtype=compute_type(options, config),
            bnb_4bit_quant_storage=options.storage_dtype,
        )
    return quantized_loading.load_options(made, config)


def compute_type(options: BitsAndBytesOptions, config: RunConfig) -> torch.dtype:
    """What 4-bit layers compute in."""
    if options.compute_dtype != "auto":
        dtype: torch.dtype = getattr(torch, options.compute_dtype)
        return dtype
    return computed_type(config) or plain_type(config)


def check_quantized(model: PreTrainedModel, options: BitsAndBytesOptions) -> None:
    """Freeze the model for an adapter. Raises ConfigError where it is not quantized as was asked."""
    quantized_loading.check_quantized(model, SECTION, options.skip_modules, options.quantize_head)
    found: Any = model.config.quantization_config
    # A model that is stored quantized is as it was stored.
    has = {"bits": 8 if found.load_in_8bit else 4}
    if has["bits"] == 4 == options.bits:
        has |= {"quant_type": found.bnb_4bit_quant_type, "double_quant": found.bnb_4bit_use_double_quant}
    for name, value in has.items():
        asked = getattr(options, name)
        if asked != value:
            message = f"is {asked}, and the base model is stored with {value}"
            raise ConfigError.at(f"{SECTION}.{name}", message, f"write {name}: {str(value).lower()}")


def describe(model: PreTrainedModel, options: BitsAndBytesOptions) -> str:
    """A line about what became of the model."""
    found: Any = model.config.quantization_config
    if options.bits == 8:
        kind = "8 bits"
    else:
        double = ", scales in 8 bits" if options.double_quant else ""
        compute = str(found.bnb_4bit_compute_dtype).removeprefix("torch.")
        kind = f"4 bits ({options.quant_type}{double}), computed in {compute}"
    return f"bitsandbytes: {kind}: {describe_quantized(model)}"
