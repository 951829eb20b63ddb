"""Counts a model's parameters by the part that they belong to, trained and frozen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dumbo.bridge.quantized_base import value_count

if TYPE_CHECKING:
    from torch.nn import Module

_PARTS = (
    ("adapters", ("lora_", "adapter", "prompt_encoder", "modules_to_save", "trainable_tokens")),
    ("experts", ("experts", "router", "gate.weight")),
    ("norms", ("norm", "ln_", "layernorm")),
    ("attention", ("attn", "attention", "q_proj", "k_proj", "v_proj", "o_proj")),
    ("mlp", ("mlp", "feed_forward", "fc1", "fc2", "ffn")),
)
"""Part -> what the names of its parameters have in them; the first that fits counts. Other names are `other`."""


def count_parameters(model: Module) -> list[dict[str, Any]]:
    """Rows of `part`, `trainable` and `frozen` (numbers of parameters), in the order of the model; tied weights count
    once."""
    vocabulary = _vocabulary(model)
    counts: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        part = vocabulary.get(id(parameter)) or _part(name)
        count = counts.setdefault(part, [0, 0])
        count[0 if parameter.requires_grad else 1] += value_count(parameter)
    return [{"part": part, "trainable": count[0], "frozen": count[1]} for part, count in counts.items()]


def _part(name: str) -> str:
    lowered = name.lower()
    return next((part for part, marks in _PARTS if any(mark in lowered for mark in marks)), "other")


def _vocabulary(model: Any) -> dict[int, str]:
    """The weights of embeddings and head, which models call by many names."""
    found: dict[int, str] = {}
    for part, getter in (("output head", "get_output_embeddings"), ("embeddings", "get_input_embeddings")):
        try:
            weight = getattr(getattr(model, getter)(), "weight", None)
        except (AttributeError, NotImplementedError):
            continue
        if weight is not None:
            found[id(weight)] = part
    return found
