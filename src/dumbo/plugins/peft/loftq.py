"""LoftQ: LoRA that begins with what quantization took from each weight (arXiv 2310.08659)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dumbo.bridge.quantized_base import is_quantized
from dumbo.bridge.stored_model import FromDisk, empty_model
from dumbo.errors import ConfigError

_KEY = "model.peft.init"
_PREFIX = "base_model.model."


def begin_with_loftq(adapted: Any, adapter: str, trusted: bool, say: Callable[[str], None]) -> None:
    """Give `adapter`, in each quantized layer, the matrices for which s B A is nearest to W - Q(W), by singular values.

    Q(W) stays what it is, so this is the first of the paper's alternations, and the adapter fits the base as it is
    quantized without it. W is read from the base model's files, a layer at a time.

    Raises:
        ConfigError: no layer with an adapter is quantized; the files of the base model are stored quantized.
    """
    layers = list(_quantized_layers(adapted, adapter))
    if not layers:
        message = "'loftq' begins with what quantization took from the weights, and no layer here is quantized"
        raise ConfigError.at(_KEY, message, "add bitsandbytes or torchao under plugins, or take 'pissa'")
    weights = _weights_on_disk(adapted, trusted)
    before = after = 0.0
    for name, layer in layers:
        full = weights.weights([f"{name}.weight"])[f"{name}.weight"]
        lost = full - _values(layer.get_base_layer().weight).float()
        rank, scaling = layer.r[adapter], layer.scaling[adapter]
        left, sizes, right = torch.linalg.svd(lost, full_matrices=False)
        root = sizes[:rank].sqrt()
        _set(layer.lora_A[adapter].weight, root[:, None] * right[:rank])
        _set(layer.lora_B[adapter].weight, left[:, :rank] * root / scaling)
        before, after = before + float((sizes**2).sum()), after + float((sizes[rank:] ** 2).sum())
    share = 1 - (after / before) ** 0.5 if before else 0.0
    say(f"peft: loftq: the adapter begins with {share:.0%} of what {len(layers)} layers lost to quantization")


def _quantized_layers(adapted: Any, adapter: str) -> Iterator[tuple[str, Any]]:
    """Layers with the adapter whose base weights are quantized, by their names in the base model."""
    for name, layer in adapted.named_modules():
        if adapter in getattr(layer, "lora_A", {}) and is_quantized(getattr(layer.get_base_layer(), "weight", None)):
            yield name.removeprefix(_PREFIX), layer


def _weights_on_disk(adapted: Any, trusted: bool) -> FromDisk:
    model = adapted.get_base_model()
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    folder = _folder_of(model)
    stored = FromDisk(empty_model(config, trusted), folder)
    if any(name.endswith((".absmax", ".SCB", ".quant_state")) for name in stored.names):
        message = "'loftq' needs the weights as they were before, and the base model is stored quantized"
        raise ConfigError.at(_KEY, message, "name the model that it was made from, or take another init")
    return stored


def _folder_of(model: Any) -> Path:
    if Path(model.name_or_path).is_dir():
        return Path(model.name_or_path)
    from huggingface_hub import snapshot_download

    commit = getattr(model.config, "_commit_hash", None)
    return Path(snapshot_download(model.name_or_path, revision=commit, local_files_only=True))


def _values(weight: Any) -> Tensor:
    """What the codes of a quantized weight stand for, [out, in]; the weight stays as it is."""
    if hasattr(weight, "dequantize") and getattr(weight, "quant_state", None) is None:
        found: Tensor = weight.dequantize() if not hasattr(weight, "SCB") else _of_eight_bits(weight)
        return found
    from bitsandbytes import functional

    made: Tensor = functional.dequantize_4bit(weight.data, weight.quant_state)
    return made


def _of_eight_bits(weight: Any) -> Tensor:
    from bitsandbytes import functional

    made: Tensor = functional.int8_vectorwise_dequant(weight.data, weight.SCB)
    return made


def _set(parameter: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        parameter.copy_(value)
