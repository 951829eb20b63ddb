"""What one of PEFT's LoRA layers is made of at this moment, and whether the kernels may compute it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn

from dumbo.kernels.lora import LoraLayer

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def lora_layer(module: Any, *, whole: bool = False) -> LoraLayer:
    """The layer that `module` is; one that is no matrix without its weight, unless it is asked for as a `whole`."""
    base, names = module.base_layer, _active(module)
    is_dense = _is_dense(base)
    alone = LoraLayer(
        weight=base.weight if is_dense else None,
        bias=base.bias if is_dense else None,
        frozen=FourBits(base) if whole and not is_dense else None,
    )
    if not names:
        return alone
    name = names[0]
    a, b, dropout = module.lora_A[name], module.lora_B[name], module.lora_dropout[name]
    return replace(
        alone,
        a=a.weight,
        b=b.weight,
        added_bias=b.bias,
        scaling=module.scaling[name],
        dropout=dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0,
    )


def lora_refusal(module: Any, *, whole: bool = False, within: Callable[..., Any] | None = None) -> str | None:
    """Why PEFT itself has to compute `module`; None where the kernels may.

    Args:
        whole: together with its base layer, which must then be a matrix, or of four bits.
        within: what may have been put in the place of its `forward` already.
    """
    if type(module).forward is not PeftLinear.forward and not quantized_by_bitsandbytes(module):
        return f"an adapter of the kind {type(module).__name__}"
    forward = vars(module).get("forward")
    if forward is not None and getattr(forward, "__func__", forward) is not within:
        return "what it computes was replaced already"
    return _adapter_refusal(module, whole) or _base_refusal(module.base_layer, whole) or _looked_at(module, whole)


def linear_refusal(module: nn.Linear) -> str | None:
    """Why a linear layer without an adapter is not for the kernels."""
    if not _is_dense(module):
        return "a quantized weight without an adapter"
    return "its weight is trained" if module.weight.requires_grad else _hooked(module)


def quantized_by_bitsandbytes(module: Any) -> bool:
    """Whether it is one of PEFT's layers for weights of bitsandbytes."""
    bnb = sys.modules.get("peft.tuners.lora.bnb")  # imports bitsandbytes, and is there where it is used
    kinds = [getattr(bnb, name, None) for name in ("Linear4bit", "Linear8bitLt")]
    return any(kind is not None and isinstance(module, kind) for kind in kinds)


class FourBits:
    """A weight that bitsandbytes keeps in four bits: see `dumbo.kernels.lora.FrozenWeight`."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    def product(self, x: Tensor) -> Tensor:
        """By the layer itself."""
        result: Tensor = self._layer(x)
        return result

    def times(self, gradient: Tensor) -> Tensor:
        """By the matrix that the four bits stand for, which is there for so long, as in the layer's own backward."""
        from bitsandbytes.functional import dequantize_4bit

        inner = gradient if self._layer.compute_dtype is None else gradient.to(self._layer.compute_dtype)
        matrix = dequantize_4bit(self._layer.weight.data, self._layer.weight.quant_state).to(inner.dtype)
        return (inner @ matrix).to(gradient.dtype)


def _active(module: Any) -> list[str]:
    return [name for name in module.active_adapters if name in module.lora_A]


def _adapter_refusal(module: Any, whole: bool) -> str | None:
    if module.disable_adapters or module.merged:
        return "its adapter is switched off or merged"
    names = _active(module)
    if whole and not names:
        return None
    if len(names) != 1:
        return f"{len(names)} adapters are active"
    if module.use_dora.get(names[0], False):
        return "DoRA"
    if names[0] in module.lora_variant:
        return f"more than a low-rank product ({type(module.lora_variant[names[0]]).__name__})"
    if not getattr(module, "cast_input_dtype_enabled", True):
        return "its input is not cast"
    dropout = module.lora_dropout[names[0]]
    if type(dropout) not in (nn.Identity, nn.Dropout) or (isinstance(dropout, nn.Dropout) and dropout.inplace):
        return f"its dropout is a {type(dropout).__name__}"
    return None


def _base_refusal(base: Any, whole: bool) -> str | None:
    if hasattr(base, "base_layer"):
        return "an adapter on an adapter"
    if whole and not _is_dense(base) and not _is_four_bits(base):
        return f"its base is a {type(base).__name__}, which is no matrix"
    weight = getattr(base, "weight", None)
    if not isinstance(weight, Tensor):
        return f"its base is a {type(base).__name__}, which has no weight"
    if weight.requires_grad:
        return "its weight is trained, too"
    return None


def _looked_at(module: Any, whole: bool) -> str | None:
    """Hooks, and replacements, on what the kernels go past."""
    parts = [module.base_layer] if _is_dense(module.base_layer) else []  # another one is called
    parts += [kept[name] for name in _active(module) for kept in (module.lora_A, module.lora_B, module.lora_dropout)]
    if whole and any(getattr(module, hooks) for hooks in _HOOKS):
        return "hooks on it"
    return next((why for part in parts if (why := _hooked(part))), None)


def _hooked(part: Any) -> str | None:
    if "forward" in vars(part) or any(getattr(part, hooks) for hooks in _HOOKS):
        return "hooks on its parts, or a part that was replaced"
    return None


def _is_dense(base: Any) -> bool:
    """A linear layer of PyTorch with a matrix of numbers for its weight; FSDP makes a class of its own of each."""
    return type(base).forward is nn.Linear.forward and type(base.weight) in (nn.Parameter, Tensor)


def _is_four_bits(base: Any) -> bool:
    weight = getattr(base, "weight", None)
    state = getattr(weight, "quant_state", None)
    if state is None or not torch.is_tensor(weight):
        return False
    # Packed for a CPU's inference, it is no longer what dequantizes; bitsandbytes has no gradient for it either.
    return type(base).__name__ == "Linear4bit" and not getattr(state, "packing_format_for_cpu", False)
