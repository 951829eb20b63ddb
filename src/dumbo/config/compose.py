"""The configuration class of one run: the core's sections, and in their places those of its plugins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, Literal, Union

from pydantic import BeforeValidator, Field, Strict, create_model
from pydantic_core import PydanticCustomError

from dumbo.config.schema import (
    DatasetEntry,
    EvaluationSection,
    FormatOptions,
    ModelSection,
    RunConfig,
    TrainerSection,
)
from dumbo.config.section import Section
from dumbo.plugin_loader import BasePlugin

ROOTS: tuple[tuple[str, type[Section]], ...] = (
    ("model", ModelSection),
    ("trainer", TrainerSection),
    ("evaluation", EvaluationSection),
)
"""The sections in which plugins may have sections of their own."""


def compose(plugins: Sequence[type[BasePlugin]]) -> type[RunConfig]:
    """`RunConfig` with the sections, readers and formats of `plugins`."""
    return _composed(tuple(plugins))


# A run composes the same twice: for itself and for its report.
@lru_cache(maxsize=8)
def _composed(plugins: tuple[type[BasePlugin], ...]) -> type[RunConfig]:
    fields: dict[str, Any] = {}
    for root, base in ROOTS:
        sections = {p.section: p.options_type for p in plugins if p.section and is_free_section(p.section)}
        ours = {key.partition(".")[2]: options for key, options in sections.items() if key.startswith(f"{root}.")}
        extended = _extended(base.__name__, base, base.__doc__, _section_fields(ours))
        fields[root] = _section_field(extended, RunConfig.model_fields[root].description)
    entry: Any = _entry_type(plugins)
    fields["datasets"] = (
        Annotated[tuple[entry, ...], Strict(False), Field(min_length=1)],
        Field(description=RunConfig.model_fields["datasets"].description),
    )
    composed: type[RunConfig] = _extended("RunConfig", RunConfig, RunConfig.__doc__, fields)
    return composed


def is_free_section(key: str) -> bool:
    """Whether a plugin may have `key` as its section: a new word in one of the sections that are open to plugins."""
    root, _, name = key.partition(".")
    return root in dict(ROOTS) and name.isidentifier() and name not in dict(ROOTS)[root].model_fields


def _extended(name: str, base: Any, doc: str | None, fields: Mapping[str, Any]) -> Any:
    """A subclass of `base` (a class, or several) with more fields."""
    # Docstrings are looked for in the class's source: it has none, and looking takes 7 ms.
    no_source: Any = {"use_attribute_docstrings": False}
    return create_model(name, __base__=base, __doc__=doc, __cls_kwargs__=no_source, **fields)


def _section_fields(sections: Mapping[str, type[Section]]) -> dict[str, Any]:
    return {name: _section_field(options, (options.__doc__ or "").strip()) for name, options in sections.items()}


def _section_field(section: type[Section], description: str | None) -> tuple[Any, Any]:
    """A field for a section: it may be left out where all that it holds has defaults."""
    if any(field.is_required() for field in section.model_fields.values()):
        return (section, Field(description=description))
    return (section, Field(default_factory=section, description=description))


def _entry_type(plugins: Sequence[type[BasePlugin]]) -> Any:
    data_format = _choice(FormatOptions, _table(plugins, "data_formats"), "data format")
    train_format = _choice(FormatOptions, _table(plugins, "train_formats"), "train format")
    entries: dict[str, type[Section]] = {}
    for name, options in _table(plugins, "readers").items():
        fields = {
            "data_format": (data_format, Field(description=DatasetEntry.model_fields["data_format"].description)),
            "train_format": (train_format, Field(description=DatasetEntry.model_fields["train_format"].description)),
        }
        bases = DatasetEntry if issubclass(DatasetEntry, options) else (options, DatasetEntry)
        entries[name] = _extended(f"DatasetEntry_{name}", bases, DatasetEntry.__doc__, fields)
    return _choice(DatasetEntry, entries, "reader")


def _table(plugins: Sequence[type[BasePlugin]], name: str) -> dict[str, type[Section]]:
    return {key: options for plugin in plugins for key, options in getattr(plugin, name, {}).items()}


def _choice(base: type[Section], options: Mapping[str, type[Section]], what: str) -> Any:
    """The type of a value that is one of `options`, chosen by its `type`; a name alone stands for `{type: name}`."""
    closed = [_with_type(name, model, base.model_fields["type"].description) for name, model in options.items()]

    def choose(value: Any) -> Any:
        value = {"type": value} if isinstance(value, str) else value
        if not isinstance(value, dict):
            raise PydanticCustomError("choice_form", "expected a mapping with 'type'", {"what": what})
        if value.get("type") is None:
            raise PydanticCustomError("choice_missing", "no type", {"what": what, "known": list(options)})
        if not isinstance(value["type"], str) or value["type"] not in options:
            known = {"what": what, "type": str(value["type"]), "known": list(options)}
            raise PydanticCustomError("choice_unknown", "unknown type", known)
        return value

    if not closed:
        return Annotated[base, BeforeValidator(choose)]
    if len(closed) == 1:
        return Annotated[closed[0], BeforeValidator(choose)]
    return Annotated[Union[tuple(closed)], Field(discriminator="type"), BeforeValidator(choose)]  # noqa: UP007


def _with_type(name: str, model: type[Section], description: str | None) -> type[Section]:
    field: Any = (Literal[name], Field(description=description))
    typed: type[Section] = _extended(f"{model.__name__}_{name}", model, model.__doc__, {"type": field})
    return typed
