"""What of a base model is quantized: which modules, how much they hold, and how a folder remembers it."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dumbo.errors import Problem, RunError

FILE = "base_quantization.json"
"""Beside an adapter that was trained on a quantized base: how to have that base again."""
_WRAPPERS = frozenset({"base_layer", "original_module"})
"""What PEFT calls a module that it has wrapped."""
_PACKAGES = (("bitsandbytes", "bitsandbytes"), ("torchao", "torchao"))
"""What begins the name of a method, and the package (and extra of dumbo) that it needs."""


@dataclass(frozen=True)
class BaseQuantization:
    """How the base model of an adapter was quantized."""

    config: Mapping[str, Any]
    """Transformers' quantization configuration, as a mapping."""
    modules: tuple[str, ...]
    """The modules that were quantized, by their names in the base model."""
    dtype: str
    """The type that their weights had before."""


def is_quantized(weight: Any) -> bool:
    """Whether `weight`, a parameter or None, holds codes that stand for values."""
    if getattr(weight, "quant_state", None) is not None:  # bitsandbytes, 4 bit
        return True
    if type(weight).__name__ == "Int8Params":
        return bool(weight.dtype == torch.int8)
    return _is_of_torchao(weight)


def _is_of_torchao(weight: Any) -> bool:
    library = sys.modules.get("torchao.utils")  # slow to import, and there where it is used
    return library is not None and isinstance(weight, library.TorchAOBaseTensor)


def value_count(weight: Tensor) -> int:
    """How many values `weight` stands for: two for each byte of 4-bit codes."""
    state = getattr(weight, "quant_state", None)
    return prod(state.shape) if state is not None else weight.numel()


def stored_bytes(weight: Tensor) -> int:
    """Bytes that `weight` takes, with the scales of its codes."""
    return sum(part.numel() * part.element_size() for part in stored_parts(weight))


def stored_parts(weight: Any) -> list[Tensor]:
    """The plain tensors that hold `weight`: itself, or its codes and their scales."""
    if _is_of_torchao(weight):
        names, _ = weight.__tensor_flatten__()
        return [part for name in names for part in stored_parts(getattr(weight, name))]
    plain: Any = weight.detach().as_subclass(torch.Tensor)
    state = getattr(weight, "quant_state", None)
    if state is not None:
        found = [state.absmax, getattr(getattr(state, "state2", None), "absmax", None)]
        return [plain, *(part for part in found if part is not None)]
    scale = getattr(weight, "SCB", None)
    return [plain] if scale is None else [plain, scale]


def quantized_modules(model: Any) -> tuple[str, ...]:
    """The names of quantized modules, without what PEFT puts around them, in the order of the model."""
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = (name for name, module in base.named_modules() if is_quantized(getattr(module, "weight", None)))
    return tuple(dict.fromkeys(".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in names))


def compute_as_trained(model: nn.Module) -> None:
    """Keep bitsandbytes from converting 4-bit weights for inference.

    On a CPU with AVX512-BF16 a layer that is evaluated packs its weight anew: scales are rounded to bfloat16, widths
    that are no multiples of 32 fail, and gradients of a training that goes on after that would not pass the layer.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def write_base_quantization(folder: Path, model: Any) -> None:
    """Write how the base of `model` is quantized into `folder`; nothing for a model with plain weights."""
    names = quantized_modules(model)
    if not names:
        return
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config: Any = base.config.quantization_config
    tree = {
        "quantization_config": config if isinstance(config, dict) else config.to_dict(),
        "modules": list(names),
        "dtype": str(_dtype_before(base)).removeprefix("torch."),
    }
    (folder / FILE).write_text(json.dumps(tree, indent=2, default=_plain), encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, set | frozenset | tuple):
        return sorted(value)
    return str(value).removeprefix("torch.")


def _dtype_before(base: Any) -> torch.dtype:
    states = (getattr(weight, "quant_state", None) for weight in base.parameters())
    dtype: torch.dtype = next((state.dtype for state in states if state is not None), base.config.dtype)
    return dtype


def read_base_quantization(folder: Path) -> BaseQuantization | None:
    """What `write_base_quantization` wrote into `folder`; None where there is no such file.

    Raises:
        RunError: it cannot be read.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        config, modules, dtype = tree["quantization_config"], tree["modules"], tree.get("dtype", "float32")
        if not isinstance(config, dict) or not isinstance(getattr(torch, str(dtype), None), torch.dtype):
            raise ValueError("its values are of other types")
        return BaseQuantization(config, tuple(str(name) for name in modules), str(dtype))
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"{file}, which says how the base model was quantized, cannot be read: {error}"
        raise RunError(str(Problem(message, hints=("copy it from the run again",)))) from error


def quantized_load_options(found: BaseQuantization, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments for `from_pretrained` that quantize as in training; layers compute in `dtype`.

    Raises:
        RunError: the package that does it is not installed.
    """
    method = str(found.config.get("quant_method", ""))
    for prefix, package in _PACKAGES:
        if method.startswith(prefix) and importlib.util.find_spec(package) is None:
            message = f"the adapter was trained on a base model quantized by {package}, which is not installed"
            hints = (f"pip install 'dumbo-trainer[{package}]'", "or load the base as it is on the disk: --unquantized")
            raise RunError(str(Problem(message, hints=hints)))
    from transformers.quantizers.auto import AutoQuantizationConfig

    config: Any = AutoQuantizationConfig.from_dict(dict(found.config))
    if hasattr(config, "bnb_4bit_compute_dtype"):
        config.bnb_4bit_compute_dtype = dtype
    # Rounded from the same values as in training.
    return {"quantization_config": config, "device_map": {"": device}, "dtype": getattr(torch, found.dtype)}


def finish_loading(model: Any, found: BaseQuantization, dtype: torch.dtype) -> None:
    """Give the weights that are not quantized the type `dtype`, and make sure that the others are those of training.

    Raises:
        ValueError: other modules are quantized than were.
    """
    compute_as_trained(model)
    wrong = set(quantized_modules(model)) ^ set(found.modules)
    if wrong:
        raise ValueError(f"{len(wrong)} modules are not quantized as in training, the first is {min(wrong)}")
    for weight in plain_weights(model):
        if weight.dtype != dtype:
            weight.data = weight.data.to(dtype)


def plain_weights(model: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters with values that are numbers, and not codes of them."""
    return (weight for weight in model.parameters() if not is_quantized(weight) and weight.is_floating_point())
