"""Rows of embeddings that the base model on disk lacks: an adapter must bring them, or nobody could load it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from dumbo.config.schema import RunConfig
from dumbo.errors import ConfigError
from dumbo.plugins.peft.matching import is_saved, matches
from dumbo.plugins.peft.plugin import ALL_LINEAR, PeftOptions


@dataclass(frozen=True)
class NewRows:
    """The token ids whose rows are trained, by the last part of the name of the layer that has them."""

    layers: Mapping[str, list[int]]
    count: int
    total: int
    """Rows of the embeddings altogether."""


def find_new_rows(model: Any, options: PeftOptions, config: RunConfig) -> NewRows | None:
    """The rows that were added for the tokenizer and that no entry of modules_to_save brings; None without any.

    Raises:
        ConfigError: an adapter on the embeddings or the head would leave their new rows behind.
    """
    embeddings, head = embeddings_of(model), model.get_output_embeddings()
    if embeddings is None:
        return None
    total, before = int(embeddings.weight.shape[0]), _rows_on_disk(model, config)
    if before is None or total <= before:
        return None
    tied = head is not None and head.weight is embeddings.weight
    layers: dict[str, list[int]] = {}
    for layer in [embeddings] if tied or head is None else [embeddings, head]:
        name = _name_of(model, layer)
        if is_saved(name, options.modules_to_save):
            continue
        names = [name, _name_of(model, head)] if tied else [name]
        if any(_is_target(each, options) for each in names):
            raise _left_behind("target_modules", f"it adapts {name}", name, total - before)
        if getattr(layer, "bias", None) is not None:
            raise _left_behind("modules_to_save", f"{name} has a bias", name, total - before)
        layers[name.rpartition(".")[2]] = list(range(before, total))
    return NewRows(MappingProxyType(layers), total - before, total) if layers else None


def embeddings_of(model: Any) -> Any:
    """The input embeddings of `model`; None where it does not show them."""
    try:
        return model.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None


def _rows_on_disk(model: Any, config: RunConfig) -> int | None:
    """How many tokens the base model has, as its own configuration says."""
    # What was loaded from the hub is on this machine by now.
    options: dict[str, Any] = {"revision": config.model.revision, "local_files_only": True}
    try:
        saved = type(model.config).from_pretrained(model.name_or_path, **options)
    except OSError:
        return None  # Another plugin made the model; it has no files to compare with.
    rows: int | None = getattr(saved.get_text_config(), "vocab_size", None)
    return rows


def _name_of(model: Any, layer: Any) -> str:
    return str(next(name for name, module in model.named_modules() if module is layer))


def _is_target(name: str, options: PeftOptions) -> bool:
    targets = options.target_modules
    if targets == ALL_LINEAR:
        return False  # It leaves out the head, and embeddings are not linear.
    if isinstance(targets, str):
        return matches(targets, name, regex=True)
    return any(matches(entry, name, regex=False) for entry in targets)


def _left_behind(option: str, because: str, name: str, count: int) -> ConfigError:
    message = f"the tokenizer brings {count} new tokens, whose rows would not be saved: {because}"
    last = name.rpartition(".")[2]
    return ConfigError.at(f"model.peft.{option}", message, f"train it as a whole: modules_to_save: [{last}]")
