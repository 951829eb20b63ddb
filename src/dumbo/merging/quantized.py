"""Base models as quantized training had them: the weights that were rounded to four or eight bits, and those alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dumbo.errors import Problem, RunError
from dumbo.merging.adapters import QUANTIZATION, Adapter
from dumbo.merging.numbers import Array
from dumbo.merging.tensor_files import StoredTensor

if TYPE_CHECKING:
    from torch import Tensor

_TYPES = ("nf4", "fp4")
_BEFORE = ("float32", "bfloat16", "float16")


def rounded_weights(adapters: Sequence[Adapter]) -> Callable[[str], Callable[[StoredTensor], Array] | None]:
    """For the name of a weight in memory: what rounds it as in training; None for all that were not quantized, such as
    embeddings, head, norms and convolutions.

    Raises:
        RunError: the adapters do not say how the base model was quantized, or not the same.
    """
    first = adapters[0]
    for adapter in adapters:
        if not adapter.quantization:
            message = f"'{adapter.folder}' does not say how its base model was quantized (no {QUANTIZATION})"
            raise _error(
                message, "leave --onto quantized out: the adapter is then merged onto the model as it is on disk"
            )
        if dict(adapter.quantization) != dict(first.quantization):
            raise _error(f"the base models of '{first.folder}' and '{adapter.folder}' were quantized differently")
    settings, dtype = _settings(first), _dtype_name(first)
    modules = frozenset(str(name) for name in first.quantization.get("modules") or ())
    if not modules:
        raise _error(f"{first.folder / QUANTIZATION} lists no modules that were quantized")
    _method(settings, first)

    def find(name: str) -> Callable[[StoredTensor], Array] | None:
        if not name.endswith(".weight") or name.removesuffix(".weight") not in modules:
            return None
        return lambda tensor: _rounded_array(tensor, settings, dtype)

    return find


def rounding_of(quantization: Mapping[str, Any]) -> Callable[[str, Tensor], Tensor]:
    """The same for tensors of PyTorch: takes the name of a weight in memory, and the weight."""
    import torch

    settings: Mapping[str, Any] = quantization["quantization_config"]
    modules = frozenset(str(name) for name in quantization["modules"])
    dtype = getattr(torch, str(quantization["dtype"])) if "dtype" in quantization else None

    def change(name: str, value: Tensor) -> Tensor:
        is_quantized = name.endswith(".weight") and name.removesuffix(".weight") in modules
        return rounded(value if dtype is None else value.to(dtype), settings) if is_quantized else value

    return change


def rounded(weight: Tensor, settings: Mapping[str, Any]) -> Tensor:
    """`weight`, in the type that training loaded it in, after it went through the quantization of `settings`, which is
    Transformers' BitsAndBytesConfig as a dictionary, and back."""
    import logging

    import torch

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # It misses kernels that nothing here needs.
    from bitsandbytes import functional

    if settings.get("load_in_8bit"):
        # LLM.int8() takes weights in float16, and keeps a scale for each row (arXiv 2208.07339).
        numbers, scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
        back: Tensor = functional.int8_vectorwise_dequant(numbers, scales)
        return back.to(weight.dtype)
    block = int(settings.get("bnb_4bit_blocksize") or 64)
    codes, state = functional.quantize_4bit(
        weight.contiguous(),
        blocksize=block,
        compress_statistics=bool(settings.get("bnb_4bit_use_double_quant")),
        quant_type=str(settings.get("bnb_4bit_quant_type", "fp4")),
    )
    made: Tensor = functional.dequantize_4bit(codes, state)
    return made


def _rounded_array(tensor: StoredTensor, settings: Mapping[str, Any], dtype: str | None) -> Array:
    """All of a tensor, rounded, in float32; before, it had the type `dtype`, or the one that it has on disk."""
    import numpy as np
    import torch

    from dumbo.merging.numbers import torch_name

    values = torch.from_numpy(tensor.read(np.float32)).to(getattr(torch, dtype or torch_name(tensor.dtype)))
    made: Array = rounded(values, settings).float().numpy()
    return made


def _settings(adapter: Adapter) -> Mapping[str, Any]:
    settings = adapter.quantization.get("quantization_config")
    if not isinstance(settings, Mapping):
        raise _error(f"{adapter.folder / QUANTIZATION} has no quantization_config")
    return settings


def _dtype_name(adapter: Adapter) -> str | None:
    """The type that the weights had in training before they were rounded; None where that is not known."""
    name = adapter.quantization.get("dtype")
    if name is not None and name not in _BEFORE:
        raise _error(f"{adapter.folder / QUANTIZATION} has an unknown dtype: {name}")
    return None if name is None else str(name)


def _method(settings: Mapping[str, Any], adapter: Adapter) -> None:
    """Refuse what cannot be computed here."""
    import importlib.util

    method = settings.get("quant_method", "bitsandbytes")
    is_known = settings.get("load_in_8bit") or settings.get("bnb_4bit_quant_type", "fp4") in _TYPES
    if method != "bitsandbytes" or not is_known:
        message = f"'{adapter.folder}' was trained on a base model quantized by {method}, which cannot be repeated here"
        raise _error(message, "leave --onto quantized out: the adapter is then merged onto the model as it is on disk")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise _error("--onto quantized needs the package 'bitsandbytes'", "pip install bitsandbytes")


def _error(message: str, *hints: str) -> RunError:
    return RunError(str(Problem(message, hints=hints)))
