"""The output head of any causal language model: what it multiplies with, and a way to compute in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class HeadError(Exception):
    """The model's head is not one matrix; the text says what it is instead."""


@dataclass(frozen=True)
class Head:
    """logits = finish(hidden @ weight.T + bias), where `finish` multiplies by `scale`, then caps softly."""

    weight: Tensor
    """[vocabulary, hidden]"""
    bias: Tensor | None
    scale: float
    softcap: float | None

    def finish(self, logits: Tensor) -> Tensor:
        """What the model does to its logits after the head."""
        scaled = logits * self.scale
        return scaled if self.softcap is None else self.softcap * torch.tanh(scaled / self.softcap)


def head_parts(model: Any) -> Head:
    """The head of `model`, below any wrappers of PEFT and DDP.

    Raises:
        HeadError: it is no single linear layer, or has an adapter of its own.
    """
    module = _head_module(model)
    config = _plain(model).config.get_text_config()
    weight, bias = _matrix(module)
    softcap = getattr(config, "final_logit_softcapping", None)
    scale = 1.0 / (getattr(config, "logits_scaling", None) or 1.0) * (getattr(config, "logit_scale", None) or 1.0)
    if bias is not None and scale != 1.0:
        raise HeadError("the model scales its logits, and its head has a bias")
    return Head(weight, bias, scale, softcap)


@contextmanager
def computing_in_head(model: Any, function: Callable[[Tensor, Head], Tensor]) -> Iterator[Head]:
    """Within, the head of `model` calls `function(hidden, head)` instead of multiplying, wherever the model calls it:
    under its autocast, inside its DDP. The model returns what the function does in place of logits."""
    module, head = _head_module(model), head_parts(model)
    if "forward" in vars(module):
        raise HeadError("what the output head computes was replaced already")
    module.forward = lambda hidden: function(hidden, head_parts(model))
    try:
        yield head
    finally:
        del module.forward  # the instance's; the class has its own


def _plain(model: Any) -> Any:
    while not hasattr(model, "config"):
        model = model.module
    return model


def _head_module(model: Any) -> Any:
    head = _plain(model).get_output_embeddings()
    if head is None:
        raise HeadError("the model does not show its output head")
    return head


def _matrix(module: Any) -> tuple[Tensor, Tensor | None]:
    if hasattr(module, "token_adapter"):  # PEFT: some rows of its own
        layer = module.token_adapter
        return layer.get_merged_weights(layer.active_adapters), getattr(layer.base_layer, "bias", None)
    if hasattr(module, "modules_to_save"):  # PEFT: a copy that is trained
        module = module.modules_to_save[module.active_adapters[0]]
    if hasattr(module, "base_layer"):
        raise HeadError("the output head has an adapter of its own")
    if type(module) is not nn.Linear:
        raise HeadError(f"the output head is a {type(module).__name__}, not one linear layer")
    return module.weight, module.bias
