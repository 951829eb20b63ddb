"""Rows of embeddings that the base model on disk lacks: an adapter must bring them, or nobody could load it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from dumbo.config.schema import RunConfig
from dumbo.errors import ConfigError
from dumbo.plugins.peft.matching import is_saved, means
from dumbo.plugins.peft.methods import ALL_LINEAR, LORA
from dumbo.plugins.peft.options import PeftOptions


@dataclass(frozen=True)
class NewRows:
    """The token ids whose rows are trained, by the last part of the name of the layer that has them."""

    layers: Mapping[str, list[int]]
    count: int
    """Rows that the base model lacks."""
    total: int
    """Rows of the embeddings altogether."""
    asked: int = 0
    """Rows of tokens that were listed."""


def find_new_rows(model: Any, options: PeftOptions, config: RunConfig) -> NewRows | None:
    """The rows that were added for the tokenizer and that no entry of modules_to_save brings, and those of the tokens
    that are listed; None without any.

    Raises:
        ConfigError: an adapter on the embeddings or the head would leave their new rows behind; a token without a row.
    """
    embeddings, head = embeddings_of(model), model.get_output_embeddings()
    if embeddings is None:
        return None
    total, before = int(embeddings.weight.shape[0]), _rows_on_disk(model, config)
    for token in options.train_tokens:
        if token >= total:
            raise _refusal("train_tokens", f"there is no token {token}", f"the model has rows for 0 to {total - 1}")
    new = range(total if before is None else before, total)
    chosen = sorted({*new, *options.train_tokens})
    if not chosen:
        return None
    names = _layers_with_rows(model, embeddings, head)
    names = [name for name in names if not is_saved(name, options.modules_to_save)]
    _refuse_lost_rows(model, options, names, len(new))
    layers = {name.rpartition(".")[2]: chosen for name in names}
    if not layers and options.train_tokens:
        message = "has no effect: modules_to_save trains all rows"
        raise _refusal("train_tokens", message, "keep one of them")
    return NewRows(MappingProxyType(layers), len(new), total, len(options.train_tokens)) if layers else None


def _layers_with_rows(model: Any, embeddings: Any, head: Any) -> list[str]:
    tied = head is not None and head.weight is embeddings.weight
    return [_name_of(model, layer) for layer in ([embeddings] if tied or head is None else [embeddings, head])]


def _refuse_lost_rows(model: Any, options: PeftOptions, names: list[str], count: int) -> None:
    for name in names:
        layer = model.get_submodule(name)
        same = [n for n, module in model.named_modules() if getattr(module, "weight", 0) is layer.weight]
        if options.method != LORA:
            raise _left_behind("method", f"'{options.method}' trains no rows by themselves", name, count)
        if any(_is_target(each, options) for each in same):
            raise _left_behind("target_modules", f"it adapts {name}", name, count)
        if getattr(layer, "bias", None) is not None:
            raise _left_behind("modules_to_save", f"{name} has a bias", name, count)


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
    # `all-linear` leaves out the head, and embeddings are not linear.
    return options.target_modules != ALL_LINEAR and means(options.target_modules, name)


def _left_behind(option: str, because: str, name: str, count: int) -> ConfigError:
    message = f"the tokenizer brings {count} new tokens, whose rows would not be saved: {because}"
    if not count:
        option, message = "train_tokens", f"rows cannot be trained by themselves: {because}"
    last = name.rpartition(".")[2]
    return _refusal(option, message, f"train it as a whole: modules_to_save: [{last}]")


def _refusal(option: str, message: str, hint: str) -> ConfigError:
    return ConfigError.at(f"model.peft.{option}", message, hint)
