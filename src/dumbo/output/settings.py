"""The settings of a run beside their defaults."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dumbo.config.compose import compose
from dumbo.config.options import model_at
from dumbo.config.schema import RunConfig
from dumbo.config.section import Section
from dumbo.config.words import yaml_words
from dumbo.errors import DumboError, KeyPath, dotted
from dumbo.plugin_finder import brought_plugins, find_plugin

SectionAt = Callable[[KeyPath], type[Section] | None]
"""The section class at a place of a configuration; None where nobody knows one."""


@dataclass(frozen=True)
class Setting:
    """A key that a configuration sets."""

    key: str
    value: str
    """As YAML has it."""
    default: str | None
    """As YAML has it; None where there is none, or where nobody knows the key."""
    doc: str = ""
    """What it does."""

    @property
    def differs(self) -> bool:
        """Whether it is not what it would have been anyway."""
        return self.value != self.default


def settings_of(config: Mapping[str, Any]) -> list[Setting]:
    """Every key that `config`, as plain values, sets, in its order; the list of plugins apart."""
    model, tree = _model_for(config), dict(config)
    section_at = cache(lambda path: model_at(model, tree, path))
    leaves = _leaves(section_at, (), tree)
    return [_setting(section_at(path[:-1]), path, value) for path, value in leaves if path[0] != "plugins"]


def defaults_of(config: Mapping[str, Any], keys: set[str]) -> dict[str, str]:
    """What `keys` are in a run with `config` that does not set them, where they exist there."""
    from dumbo.config.options import all_options

    options = {option.key: option.default for option in all_options(_model_for(config)) if not option.is_section}
    return {key: options[key] for key in keys if key in options and options[key] != "required"}


def _model_for(config: Mapping[str, Any]) -> type[RunConfig]:
    """The configuration class with the sections of the installed plugins that `config` lists.

    Plugins in files are left out: to look at a report must not run the code of whoever made the run.
    """
    names = config.get("plugins")
    brought = brought_plugins()
    types = []
    for name in dict.fromkeys(names if isinstance(names, list) else ()):
        if isinstance(name, str) and ":" not in name:
            try:
                types.append(find_plugin(name, Path(), brought).type)
            except DumboError:
                continue
    return compose(types)


def _leaves(section_at: SectionAt, path: KeyPath, value: Any) -> Iterator[tuple[KeyPath, Any]]:
    """The values below `path` that are no sections, with where they stand."""
    if isinstance(value, dict) and (not path or isinstance(path[-1], int) or _is_section(section_at, path)):
        for key, item in value.items():
            yield from _leaves(section_at, (*path, str(key)), item)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for index, item in enumerate(value):
            yield from _leaves(section_at, (*path, index), item)
    else:
        yield path, value


def _is_section(section_at: SectionAt, path: KeyPath) -> bool:
    """Whether the mapping at `path` is a section; those that nobody knows are."""
    parent = section_at(path[:-1])
    known = parent is not None and path[-1] in parent.model_fields
    return not known or section_at(path) is not None


def _setting(parent: type[Section] | None, path: KeyPath, value: Any) -> Setting:
    name = str(path[-1])
    field = parent.model_fields.get(name) if parent is not None else None
    if field is None:
        return Setting(dotted(path), in_yaml(value), None)
    default = None
    if not field.is_required() and name != "type":
        default = in_yaml(field.get_default(call_default_factory=True, validated_data={}))
    return Setting(dotted(path), in_yaml(value), default, " ".join((field.description or "").split()))


def in_yaml(value: Any) -> str:
    """A value in a line of YAML; numbers that are equal look alike, whatever their type."""
    if isinstance(value, float) and math.isfinite(value) and value == int(value) and abs(value) < 1e15:
        value = int(value)
    if value == "":
        return '""'
    return yaml_words(value)
