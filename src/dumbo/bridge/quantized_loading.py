"""Loads a base model quantized, for the plugins that do, and makes sure that it became what was asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.quantizers_utils import should_convert_module

from dumbo.bridge.quantized_base import compute_as_trained, is_quantized, quantized_modules, stored_bytes, value_count
from dumbo.bridge.training_args import uses_bf16
from dumbo.config.schema import RunConfig
from dumbo.errors import ConfigError

_HEADS = ("lm_head", "embed_out", "output_projection")
"""What models call their output heads. Transformers leaves the head alone only as long as nobody names modules."""
_SHOWN = 12


def training_device(config: RunConfig) -> torch.device:
    """Where the model is trained: quantized weights go there at once, as they cannot be moved later."""
    found = None if config.trainer.arguments.use_cpu else torch.accelerator.current_accelerator(check_available=True)
    if found is None:
        return torch.device("cpu")
    return torch.device(found.type, int(os.environ.get("LOCAL_RANK", "0")))


def computed_type(config: RunConfig) -> torch.dtype | None:
    """The type that the run computes in under autocast; None where it does so in that of the weights."""
    arguments = config.trainer.arguments
    if uses_bf16(arguments):
        return torch.bfloat16
    return torch.float16 if arguments.fp16 else None


def plain_type(config: RunConfig) -> torch.dtype:
    """The type of the weights that are not quantized: what the run computes in, unless `model.dtype` says so.

    They are frozen, and their values those of a file in 16 bits nearly always: more bits would hold nothing more. Of a
    vocabulary of 128,000 tokens in float32, embeddings and head take 2 GiB each. With norms in float32 quantized layers
    would return float32 too, as they return the type that they are given: of a Llama of 4 layers, 256 wide, a third
    more is kept for the backward pass.
    """
    if config.model.dtype != "auto":
        dtype: torch.dtype = getattr(torch, config.model.dtype)
        return dtype
    computed = computed_type(config)
    # Norms of some models overflow in float16.
    return computed if computed is torch.bfloat16 else torch.float32


def load_options(quantization: Any, config: RunConfig) -> dict[str, Any]:
    """Arguments for `from_pretrained` beside `quantization`."""
    options = {"quantization_config": quantization, "device_map": {"": training_device(config)}}
    return options if config.model.dtype != "auto" else {**options, "dtype": plain_type(config)}


def left_alone(skip: Sequence[str], quantize_head: bool) -> list[str] | None:
    """The names for Transformers of what is not quantized; None for its own choice, head and tied weights."""
    if quantize_head:
        return list(skip)
    return [*skip, *_HEADS] if skip else None


def check_quantized(model: Any, section: str, skip: Sequence[str], quantize_head: bool) -> None:
    """Freeze `model`, which was loaded quantized, for an adapter.

    Raises:
        ConfigError: it is not quantized as the options in `section` ask.
    """
    names = quantized_modules(model)
    if not names:
        raise ConfigError.at(section, f"nothing was quantized: {_no_reason(model)}", "remove the plugin")
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    for entry in skip:
        if not any(not should_convert_module(name, [entry]) for name in linear):
            known = list(dict.fromkeys(name.rpartition(".")[2] for name in linear))
            hint = f"the model has: {', '.join(known[:_SHOWN])}"
            raise ConfigError.at(f"{section}.skip_modules", f"'{entry}' matches no linear layer", hint)
    _check_head(model, section, quantize_head)
    model.requires_grad_(False)
    compute_as_trained(model)


def _no_reason(model: Any) -> str:
    kinds = sorted({type(module).__name__ for module in model.modules() if "weight" in module._parameters})
    return f"the model's layers are {', '.join(kinds[:_SHOWN])}"


def _check_head(model: Any, section: str, quantize_head: bool) -> None:
    head = model.get_output_embeddings()
    if head is None:
        return
    name = next((name for name, module in model.named_modules() if module is head), "lm_head")
    if quantize_head and not is_quantized(head.weight):
        is_tied = head.weight is model.get_input_embeddings().weight
        reason = "it is tied to the embeddings" if is_tied else f"it is a {type(head).__name__}"
        message = f"the output head, {name}, cannot be quantized: {reason}"
        raise ConfigError.at(f"{section}.quantize_head", message, "leave it out")
    if not quantize_head and is_quantized(head.weight):
        message = f"the output head, {name}, was quantized"
        raise ConfigError.at(f"{section}.skip_modules", message, f"add {name}, or write quantize_head: true")


def describe_quantized(model: nn.Module) -> str:
    """`14 linear layers (...), 81 MiB where bfloat16 takes 300 MiB; left in bfloat16: embed_tokens 1, norm 5`."""
    weights = list(model.parameters())
    quantized = [weight for weight in weights if is_quantized(weight)]
    values, taken = sum(map(value_count, quantized)), sum(map(stored_bytes, quantized))
    rest = [weight for weight in weights if not is_quantized(weight)]
    left = sum(map(stored_bytes, rest))
    kinds = sorted({str(weight.dtype).removeprefix("torch.") for weight in rest})
    said = f"{len(quantized_modules(model))} layers with {values:,} values in {_size(taken)}"
    said += f" ({8 * taken / max(values, 1):.2f} bits each)"
    return f"{said}; all other weights in {' and '.join(kinds)}, {_size(left)}"


def _size(count: int) -> str:
    for name, unit in (("GiB", 2**30), ("MiB", 2**20)):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count / 2**10:.0f} KiB"
