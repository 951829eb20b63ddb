"""Every option says what it does: its docstring is the schema, the docs page, and what `dumbo explain` answers."""

import importlib
import pkgutil
import sys
from collections.abc import Iterator

import pytest

import dumbo.config
from dumbo.config.section import Section
from tests.house.tree import plugin_folders


def declared_sections() -> list[type[Section]]:
    """Every section class of the core and the shipped plugins, none of them composed for a run."""
    for module in pkgutil.iter_modules(dumbo.config.__path__, "dumbo.config."):
        importlib.import_module(module.name)
    for folder in plugin_folders():
        importlib.import_module(f"dumbo.plugins.{folder.name}.plugin")
    found = {section for section in _subclasses(Section) if section.__module__.startswith("dumbo.")}
    # Those that were composed are there until they are collected: not in every process at the same moment.
    found = {section for section in found if vars(sys.modules[section.__module__]).get(section.__name__) is section}
    return sorted(found, key=lambda section: (section.__module__, section.__qualname__))


def undocumented(section: type[Section]) -> list[str]:
    """Its options without a docstring that is a sentence, and the section itself where nothing says what it is for."""
    missing = [] if (section.__dict__.get("__doc__") or "").strip() else [f"{section.__name__} has no docstring"]
    for name, field in section.model_fields.items():
        doc = (field.description or "").strip()
        if not doc.endswith((".", "?", "!")):
            missing.append(
                f"{section.__name__}.{name}: {'not a sentence: ' + doc if doc else 'no docstring beneath it'}"
            )
    return missing


def _subclasses(parent: type[Section]) -> Iterator[type[Section]]:
    for child in parent.__subclasses__():
        yield child
        yield from _subclasses(child)


@pytest.mark.parametrize("section", declared_sections(), ids=lambda section: f"{section.__module__}.{section.__name__}")
def test_every_option_is_documented(section):
    assert undocumented(section) == []


def test_an_option_without_a_docstring_is_caught():
    class PlantedSection(Section):
        documented: int = 1
        """Says what it does."""
        silent: int = 2
        vague: int = 3
        """some number"""

    assert undocumented(PlantedSection) == [
        "PlantedSection has no docstring",
        "PlantedSection.silent: no docstring beneath it",
        "PlantedSection.vague: not a sentence: some number",
    ]
