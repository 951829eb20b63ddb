"""Every option of a composed configuration class, flat: what `explain`, the docs and the suggestions are made of."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from dumbo.config.section import Section
from dumbo.config.words import type_words, yaml_words
from dumbo.errors import KeyPath


@dataclass(frozen=True)
class Option:
    """One key of the configuration."""

    key: str
    """Dotted, without positions in lists: `datasets.path`."""
    field: FieldInfo
    when: str = ""
    """For a key that exists with one type only: `type: alpaca`."""
    is_section: bool = False

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rpartition(".")[2]

    @property
    def parent(self) -> str:
        """The section that holds it; empty at the top."""
        return self.key.rpartition(".")[0]

    @property
    def takes(self) -> str:
        """Its type in words."""
        return type_words(self.field)

    @property
    def default(self) -> str:
        """Its default in YAML, or `required`."""
        if self.field.is_required():
            return "required"
        if self.is_section:
            return "{}"
        return yaml_words(self.field.get_default(call_default_factory=True, validated_data={}))

    @property
    def doc(self) -> str:
        """What it does."""
        return " ".join((self.field.description or "").split())


def all_options(model: type[Section]) -> list[Option]:
    """The options of a composed configuration class, sections before what they hold, in the order of their
    definition."""
    return list(_walk(model, "", ""))


def _walk(model: type[Section], parent: str, when: str) -> Iterator[Option]:
    for name, field in model.model_fields.items():
        key = f"{parent}.{name}" if parent else name
        models = section_types(field.annotation)
        yield Option(key, field, when, bool(models))
        shared: set[str] = set()
        for nested in models:
            label = _type_label(nested) if len(models) > 1 or "type" in nested.model_fields else ""
            for option in _walk(nested, key, label or when):
                mark = f"{option.key}|{option.doc}"
                if label and mark in shared:
                    continue
                shared.add(mark)
                yield option


def section_types(annotation: Any) -> list[type[Section]]:
    """The section classes among the values that an annotation admits."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, types.UnionType, tuple, list):
        return [found for part in get_args(annotation) for found in section_types(part)]
    return []


def _type_label(model: type[Section]) -> str:
    annotation: Any = model.model_fields["type"].annotation if "type" in model.model_fields else None
    return f"type: {get_args(annotation)[0]}" if get_origin(annotation) is Literal else ""


def model_at(model: type[Section], tree: Any, path: KeyPath) -> type[Section] | None:
    """The section class that validates the mapping at `path` of the raw `tree`; None where there is no such section."""
    here: list[type[Section]] = [model]
    value = tree
    for part in path:
        value = _child(value, part)
        if isinstance(part, str):
            fields = [m.model_fields[part] for m in here if part in m.model_fields]
            here = [found for field in fields for found in section_types(field.annotation)]
        kind = value.get("type") if isinstance(value, dict) else value
        chosen = [m for m in here if _type_label(m) == f"type: {kind}"]
        here = chosen or here
    return here[0] if here else None


def _child(value: Any, part: str | int) -> Any:
    try:
        return value[part]
    except (KeyError, IndexError, TypeError):
        return None
