"""Counts a model's parameters by the part that they belong to, trained and frozen, and names those that are trained."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
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


def trained_names(model: Module) -> list[dict[str, Any]]:
    """What is trained: rows of `name` (one for all layers, as in `layers.{0-3}.mlp`), `weights` and `parameters`, their
    numbers, in the order of the model."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters() if parameter.requires_grad}
    return [
        {"name": name, "weights": len(names), "parameters": sum(sizes[each] for each in names)}
        for name, names in folded(sizes).items()
    ]


def folded(names: Iterable[str]) -> dict[str, list[str]]:
    """Names that differ in numbers alone, under one: `layers.0.q` and `layers.1.q` under `layers.{0-1}.q`."""
    kinds: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        kinds.setdefault(tuple(re.split(r"(?<=\.)\d+(?=\.)", name)), []).append(name)
    result = {}
    for parts, found in kinds.items():
        numbers = zip(*(re.findall(r"(?<=\.)\d+(?=\.)", name) for name in found), strict=True)
        marks = [_ranges(sorted({int(number) for number in column})) for column in numbers]
        result["".join(part for pair in zip(parts, [*marks, ""], strict=True) for part in pair)] = found
    return result


def _ranges(numbers: Sequence[int]) -> str:
    """`5` for one number, `{0-3,7}` for several."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    if len(numbers) == 1:
        return str(numbers[0])
    return "{" + ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs) + "}"


_MOST_NAMES = 6


def near_names(pattern: str, names: Sequence[str]) -> tuple[str, ...]:
    """A hint for a pattern that fits none of `names`: some of them, those most like it first."""
    kinds = list(folded(dict.fromkeys(names)))
    likeness = {kind: difflib.SequenceMatcher(None, pattern, kind).ratio() for kind in kinds}
    nearest = sorted(kinds, key=lambda kind: -likeness[kind])[:_MOST_NAMES]
    more = f" and {len(kinds) - len(nearest)} more" if len(kinds) > len(nearest) else ""
    return (f"nearest are: {', '.join(nearest)}{more}",)


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
