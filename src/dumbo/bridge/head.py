"""The output head of any causal language model, which can be made to leave its logits to the loss."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dumbo.bridge.lazy_logits import LazyLogits
from dumbo.kernels.linear_logits import LinearLogits

_Parts = Callable[[], tuple[Tensor, Tensor | None]]
"""Weight and bias of a linear layer as they are when it is called."""


class HeadError(Exception):
    """The model's head is not one matrix; the text says what it is instead."""


@contextmanager
def leaving_logits(model: Any) -> Iterator[None]:
    """Within, the head of `model`, below any wrappers of PEFT and DDP, returns `LazyLogits` where the model calls it:
    under its autocast, inside its DDP.

    Raises:
        HeadError: the head is no single linear layer, with or without a low-rank update.
    """
    with ExitStack() as stack:
        for module, parts in _linear_layers(_head_module(model)):
            module.forward = _forward(parts)
            stack.callback(delattr, module, "forward")  # the instance's; the class has its own
        yield


def logits_at(model: Any, inputs: Mapping[str, Any], places: Tensor) -> Tensor:
    """The logits of `model` at `places` (bool [sequences, tokens]), [places, vocabulary]; where its head is a linear
    layer, no others are made."""
    try:
        with leaving_logits(model):
            logits = model(**inputs).logits
    except HeadError:
        logits = model(**inputs).logits
    chosen: Tensor = logits[places]
    return chosen.values_of("generation") if isinstance(chosen, LazyLogits) else chosen


class HeadShape(NamedTuple):
    """What a head is made of."""

    size: int
    """Tokens of the vocabulary."""
    has_update: bool
    """Whether something of low rank is added to its matrix."""


def head_shape(model: Any) -> HeadShape:
    """What the head of `model` is made of.

    Raises:
        HeadError: as `leaving_logits`.
    """
    [(_, parts), *updates] = _linear_layers(_head_module(model))
    return HeadShape(int(parts()[0].shape[0]), bool(updates))


def keep_eager(model: Any) -> None:
    """Of a compiled model, leave alone what handles `LazyLogits`: its outer layers. All layers below are compiled."""
    if not _is_compiled(model):
        return
    module = _plain(model)
    while module is not None:
        if "forward" not in vars(module) or not hasattr(module.forward, "_torchdynamo_disable"):
            module.forward = torch.compiler.disable(module.forward, recursive=False)  # type: ignore[no-untyped-call]
        module = module.get_base_model() if hasattr(module, "get_base_model") else None  # below PEFT's wrapper


def _is_compiled(model: Any) -> bool:
    while model is not None:
        if hasattr(model, "_orig_mod"):
            return True
        model = vars(model)["_modules"].get("module")
    return False


def _forward(parts: _Parts) -> Callable[[Tensor], LazyLogits]:
    def forward(hidden: Tensor) -> LazyLogits:
        weight, bias = parts()
        device, dtype = hidden.device.type, None
        if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(device)
        return LazyLogits.of(LinearLogits((hidden,), (weight,), bias, dtype=dtype))

    # A compiler leaves it alone: what comes out is nothing that it knows.
    left_alone: Callable[[Tensor], LazyLogits] = torch.compiler.disable(forward)  # type: ignore[no-untyped-call]
    return left_alone


def _plain(model: Any) -> Any:
    """The model without what compiles or distributes it. A compiled one shows the attributes of what it wraps."""
    while True:
        parts = vars(model)["_modules"]
        if "_orig_mod" in parts:
            model = parts["_orig_mod"]
        elif hasattr(model, "config") or "module" not in parts:
            return model
        else:
            model = parts["module"]


def _head_module(model: Any) -> Any:
    if getattr(model, "static_graph", False):  # DDP then learns of the first backward pass by the values alone
        raise HeadError("the model is distributed with a static graph")
    plain, head = _plain(model), None
    if hasattr(plain, "get_output_embeddings"):  # a plugin may load any module
        with suppress(NotImplementedError):
            head = plain.get_output_embeddings()
    if head is None:
        raise HeadError("the model does not show its output head")
    return head


def _linear_layers(module: Any) -> list[tuple[Any, _Parts]]:
    """The layers whose results are added up to the logits."""
    if hasattr(module, "token_adapter"):  # PEFT: some rows of its own
        layer = _untouched(module.token_adapter)
        return [(layer, lambda: (_with_rows(layer), layer.base_layer.bias))]
    if hasattr(module, "modules_to_save"):  # PEFT: a copy that is trained
        module = module.modules_to_save[module.active_adapters[0]]
    if hasattr(module, "lora_B"):
        names = [name for name in module.active_adapters if name in module.lora_B]
        if not any(name in module.lora_variant for name in names):  # such as DoRA
            updates = [module.lora_B[name] for name in names]
            return [_linear_layer(layer) for layer in (module.base_layer, *updates)]
    if hasattr(module, "base_layer"):
        raise HeadError("the output head has an adapter that is not a low-rank update")
    return [_linear_layer(module)]


def _with_rows(layer: Any) -> Tensor:
    """The weight of PEFT's layer of trained rows, as it computes with it."""
    weight: Tensor = layer.base_layer.weight
    return weight if layer.disable_adapters else layer.get_merged_weights(layer.active_adapters)


def _linear_layer(module: Any) -> tuple[Any, _Parts]:
    # FSDP makes a class of its own of each module's.
    if not isinstance(module, nn.Linear) or type(module).forward is not nn.Linear.forward:
        raise HeadError(f"the output head is a {type(module).__name__}, not one linear layer")
    fsdp = sys.modules.get("torch.distributed.fsdp")  # slow to import, and there where it is used
    if fsdp is not None and isinstance(module, fsdp.FSDPModule):
        raise HeadError("the output head is a unit of its own for FSDP, whose weights are there in its call alone")
    return _untouched(module), lambda: (module.weight, module.bias)


def _untouched(module: Any) -> Any:
    """With the forward of its class: who has put another in its place, as Accelerate does to move weights, needs it."""
    if "forward" in vars(module):
        raise HeadError("what the output head computes was replaced already")
    return module
