"""Puts the kernels for LoRA in the place of what PEFT's layers compute, in training alone, and takes them out again."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from itertools import permutations
from typing import Any, NamedTuple

import torch
from peft.tuners.lora.layer import LoraLayer as PeftLora
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from dumbo.bridge.lora_layers import linear_refusal, lora_layer, lora_refusal, quantized_by_bitsandbytes
from dumbo.kernels.lora import GatedBlock, LoraLayer, SharedCast, gated_block, lora_linear

_TRIED = 3
"""Tokens with which a block is compared with what it is taken for."""


class Found(NamedTuple):
    """What a model has for the kernels: names of modules, and for those that are left to PEFT, why."""

    blocks: list[str]
    layers: list[str]
    """Those outside of the blocks."""
    left_blocks: dict[str, str]
    left_layers: dict[str, str]


class _Names(NamedTuple):
    gate: str
    up: str
    down: str
    activation: str


def fuse_lora(model: nn.Module, *, blocks: bool, layers: bool) -> Found:
    """Let the gated feed-forward blocks of `model`, its other layers with LoRA, or both, compute with the kernels.

    What is replaced is the `forward` of instances, and what is saved, merged, copied or switched off stays PEFT's. A
    call without gradients, in evaluation, with several adapters, with none, or with hooks on what the kernels would go
    past is PEFT's, too.
    """
    shared = SharedCast()
    found = Found([], [], {}, {})
    inside: list[str] = []
    modules: list[tuple[str, Any]] = list(model.named_modules())
    for name, module in modules if blocks else []:
        names, why = _names_of(module)
        if names is not None:
            module.fused_names, module.fused_cast = names, shared
            module.forward = types.MethodType(_block_forward, module)
            found.blocks.append(name)
            inside += [f"{name}.{part}" for part in names[:3]]
        elif why:
            found.left_blocks[name] = why
    for name, module in modules if layers else []:
        if name in inside or not _is_adapter(name, module):
            continue
        why = _layer_refusal(module)
        if why:
            found.left_layers[name] = why
            continue
        module.fused_cast = shared
        module.forward = types.MethodType(_layer_forward, module)
        found.layers.append(name)
    return found


def _is_adapter(name: str, module: Any) -> bool:
    """Whether PEFT adapts it; single rows of embeddings are no layer."""
    return isinstance(module, BaseTunerLayer) and ".token_adapter" not in f".{name}"


def _layer_refusal(module: Any) -> str | None:
    return lora_refusal(module) if isinstance(module, PeftLora) else f"a {type(module).__name__} is no LoRA"


def release_lora(model: nn.Module) -> None:
    """Undo `fuse_lora`."""
    for module in model.modules():
        if getattr(vars(module).get("forward"), "__func__", None) in (_block_forward, _layer_forward):
            for name in ("forward", "fused_cast", "fused_names"):
                vars(module).pop(name, None)


def _layer_forward(self: Any, x: Tensor, *more: Any, **named: Any) -> Tensor:
    """In the place of a LoRA layer's `forward`."""
    is_plain = not more and not named and self.training and torch.is_grad_enabled()
    if not is_plain or lora_refusal(self, within=_layer_forward):
        theirs: Tensor = type(self).forward(self, x, *more, **named)
        return theirs
    layer, compute = lora_layer(self), _autocast_type(x)
    if layer.weight is not None:
        return lora_linear(x, layer, self.fused_cast, compute)
    result: Tensor = self.base_layer(x)
    added = lora_linear(x, layer, self.fused_cast, compute)
    if quantized_by_bitsandbytes(self):
        return result + (added if torch.is_autocast_enabled() else added.to(result.dtype))
    return (result + added).to(result.dtype)


def _block_forward(self: Any, x: Tensor, *more: Any, **named: Any) -> Tensor:
    """In the place of a feed-forward block's `forward`."""
    block = None
    if not more and not named and self.training and torch.is_grad_enabled():
        block = _block(self, self.fused_names)
    if block is None:
        theirs: Tensor = type(self).forward(self, x, *more, **named)
        return theirs
    return gated_block(x, block, self.fused_cast, _autocast_type(x))


def _autocast_type(x: Tensor) -> torch.dtype | None:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


def _block(module: Any, names: _Names) -> GatedBlock | None:
    """The block that `module` is at this moment; None where a part of it is not for the kernels."""
    parts = [getattr(module, name) for name in names[:3]]
    if any(_part_refusal(part) for part in parts):
        return None
    gate, up, down = (_part(part) for part in parts)
    if gate.a is None and up.a is None and down.a is None:
        return None
    return GatedBlock(gate, up, down, getattr(module, names.activation))


def _part(part: Any) -> LoraLayer:
    if isinstance(part, PeftLora):
        return lora_layer(part, whole=True)
    return LoraLayer(part.weight, part.bias)


def _part_refusal(part: Any) -> str | None:
    if isinstance(part, PeftLora):
        return lora_refusal(part, whole=True)
    return linear_refusal(part)


def _names_of(module: Any) -> tuple[_Names | None, str | None]:
    """What the parts of a feed-forward block are called; or, of one that may be such a block, why it is left."""
    linears = [
        name for name, child in module.named_children() if isinstance(child, PeftLora) or type(child) is nn.Linear
    ]
    if len(linears) != 3 or not any(isinstance(getattr(module, name), PeftLora) for name in linears):
        return None, None
    activations = list(_activations(module, linears))
    if not activations or not _takes_one(module):
        return None, None
    if "forward" in vars(module):
        return None, "what it computes was replaced already"
    for name in linears:
        why = _part_refusal(getattr(module, name))
        if why:
            return None, f"{name}: {why}"
    for names in _orders(module, linears, activations):
        try:
            if _computes(module, names):
                return names, None
        except Exception as error:  # a stranger's forward with made-up numbers may raise anything
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return None, f"it could not be tried: {lines[0]}"
    return None, "it is not down(act(gate(x)) * up(x))"


def _activations(module: Any, linears: list[str]) -> Iterator[str]:
    """The names of what may be the activation: a function, or a module without weights."""
    for name, child in module.named_children():
        if name not in linears and not any(True for _ in child.parameters()) and not isinstance(child, nn.Dropout):
            yield name
    for name, value in vars(module).items():
        if not name.startswith("_") and callable(value) and not isinstance(value, type) and name != "forward":
            yield name


def _takes_one(module: Any) -> bool:
    """Whether it is called with one tensor."""
    parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
    needed = [each for each in parameters if each.default is each.empty and each.kind is each.POSITIONAL_OR_KEYWORD]
    return len(needed) == 1


def _orders(module: Any, linears: list[str], activations: list[str]) -> Iterator[_Names]:
    """All assignments of names that fit by their sizes."""
    for gate, up, down in permutations(linears):
        one, other, last = (getattr(module, name) for name in (gate, up, down))
        if (one.in_features, one.out_features) != (other.in_features, other.out_features):
            continue
        if (last.in_features, last.out_features) == (one.out_features, one.in_features):
            yield from (_Names(gate, up, down, activation) for activation in activations)


def _computes(module: Any, names: _Names) -> bool:
    """Whether the module's own `forward` is that of the block with these `names`, bit by bit, for random tokens."""
    gate: Any = getattr(module, names.gate)
    base: Any = gate.base_layer if isinstance(gate, PeftLora) else gate
    weight: Tensor = base.weight
    x = torch.randn(1, _TRIED, gate.in_features, generator=torch.Generator().manual_seed(0))
    x = x.to(weight.device, weight.dtype if weight.is_floating_point() else torch.float32)
    modes = [(part, part.training) for part in module.modules()]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        module.train()
        try:
            torch.default_generator.manual_seed(0)
            expected = type(module).forward(module, x)
            torch.default_generator.manual_seed(0)
            block = _block(module, names)
            found = None if block is None else gated_block(x, block, SharedCast(), None)
        finally:
            for part, mode in modes:
                part.training = mode
    is_telling = isinstance(expected, Tensor) and bool(expected.isfinite().all()) and bool(expected.any())
    return is_telling and found is not None and torch.equal(found, expected)
