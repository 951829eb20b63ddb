"""From a configuration file to a checked configuration and its plugins, with every mistake reported at once."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError, create_model

from dumbo.config.batching import batch_problem
from dumbo.config.compose import ROOTS, compose
from dumbo.config.data_rules import data_problems
from dumbo.config.explain import UNKNOWN_OPTION, explain_errors, unknown_name_hints
from dumbo.config.foreign_keys import looks_like
from dumbo.config.schema import DatasetEntry, RunConfig
from dumbo.config.section import Section
from dumbo.config.source import Source, load_source
from dumbo.errors import ConfigError, KeyPath, Place, Problem
from dumbo.launch import Launch
from dumbo.plugin_finder import (
    FoundPlugin,
    brought_plugins,
    find_installed,
    find_plugin,
    install_hint,
    missing_packages,
    plugin_name,
)
from dumbo.plugin_loader import BasePlugin
from dumbo.plugin_manager import PluginManager
from dumbo.plugin_rules import check_batches, check_consumers, check_evaluators, check_plugins, check_states


@dataclass(frozen=True)
class Configured:
    """A configuration that may run."""

    source: Source
    config: RunConfig
    plugins: PluginManager

    def explain(self, error: ConfigError) -> ConfigError:
        """The same error with the lines of the file filled in."""
        return ConfigError([problem.at(self.source.place(problem.path)) for problem in error.problems])


def configure(file: Path, overrides: Sequence[str], launch: Launch) -> Configured:
    """Read, compose, validate and check. Imports no plugin that is not listed, and nothing heavy.

    Raises:
        ConfigError: with all problems that could be found, in the order of the file.
    """
    source = load_source(file, overrides)
    problems = list(source.problems)
    if not source.tree:
        raise ConfigError(problems)
    names, found, plugin_problems = _listed_plugins(source, file.parent)
    if names and not plugin_problems and all(isinstance(name, str) for name in names):
        plugin_problems = check_plugins(found)
    problems += plugin_problems
    config, found_problems = _validate(source, found, complete=len(found) == len(names))
    problems += found_problems
    manager = PluginManager(found)
    if config is not None and not problems:
        problems += check_consumers(config, found)
        problems += check_evaluators(config, found)
        problems += [*check_states(config, found), *check_batches(config, found)]
        problems += data_problems(config)
        arguments = config.trainer.arguments
        sizes = batch_problem(arguments.batch_size, arguments.physical_batch_size, launch.world_size)
        problems += [sizes] if sizes else []
        problems += manager.start(config)
    if problems or config is None:
        raise ConfigError([*_other_tool(problems, source), *_in_file_order(problems, source)])
    return Configured(source, config, manager)


def _other_tool(problems: Sequence[Problem], source: Source) -> list[Problem]:
    """Whose configuration this is, if many of its unknown keys are those of another tool."""
    unknown = [str(problem.path[-1]) for problem in problems if problem.path and problem.message == UNKNOWN_OPTION]
    tool = looks_like(unknown)
    message = f"this looks like {tool} configuration; 'dumbo docs quickstart' shows one of dumbo's"
    return [Problem(message, place=Place(str(source.file)))] if tool else []


def _listed_plugins(source: Source, folder: Path) -> tuple[list[Any], list[FoundPlugin], list[Problem]]:
    """What stands under `plugins:`, those plugins that could be found, and what is wrong with the others."""
    names = source.tree.get("plugins")
    if not isinstance(names, list):
        return [], [], []  # the schema says so
    found: list[FoundPlugin] = []
    problems: list[Problem] = []
    brought = brought_plugins()
    for position, name in enumerate(names):
        if not isinstance(name, str):
            continue
        path: KeyPath = ("plugins", position)
        try:
            plugin = replace(find_plugin(name, folder, brought), position=position)
        except ConfigError as error:
            problems += [replace(problem, path=path) for problem in error.problems]
            continue
        twin = next((other for other in found if other.name == plugin.name), None)
        if twin is not None:
            same = twin.type is plugin.type
            message = f"'{name}' is listed twice" if same else f"two of the listed plugins are called '{plugin.name}'"
            problems.append(Problem(message, path, hints=("remove one of them",)))
            continue
        for package in missing_packages(plugin.type):
            message = f"the plugin '{name}' needs the package '{package}', which is not installed"
            problems.append(Problem(message, path, hints=(install_hint(plugin.name, package),)))
        found.append(plugin)
    return names, found, problems


def _validate(source: Source, found: Sequence[FoundPlugin], complete: bool) -> tuple[RunConfig | None, list[Problem]]:
    """The validated configuration, or None and what is wrong with it.

    A section or a type whose plugin is installed but not listed is a problem; what it holds is checked all the same.
    Unless `found` is all that was listed (`complete`), one that nobody brings may belong to a plugin that is not there.
    """
    problems: list[Problem] = []
    types = [plugin.type for plugin in found]
    siblings = _siblings(found, source.tree.get("plugins"))
    unlisted, ownerless = _not_brought(source.tree, found, tuple(siblings))
    for path, plugin in unlisted.items():
        if _is_meant(plugin.name, source.tree.get("plugins"), found):
            continue
        hint = f"add '{plugin.name}' under plugins:"
        if plugin in siblings:
            file, _, _ = siblings[plugin].rpartition(":")
            what = "section" if path[0] != "datasets" else "type"
            hint = f"{Path(file).name} has a plugin with this {what}: list '{siblings[plugin]}'"
        message = f"this needs the plugin '{plugin.name}', which is not listed"
        problems.append(Problem(message, path, hints=(hint,)))
    types += [plugin.type for plugin in {plugin.name: plugin for plugin in unlisted.values()}.values()]
    problems += _unknown_readers(source.tree, types)
    model = compose(types)
    try:
        config = model.model_validate(source.tree)
    except ValidationError as error:
        config, problems = None, problems + explain_errors(error, source, model)
    return config, problems if complete else [problem for problem in problems if problem.path not in ownerless]


def _is_meant(plugin: str, names: Any, found: Sequence[FoundPlugin]) -> bool:
    """Whether the list of plugins is missing or empty, or has this one misspelled: there it is said already."""
    if not isinstance(names, list) or not names:
        return True
    unknown = {name for name in names if isinstance(name, str)} - {other.name for other in found}
    return bool(get_close_matches(plugin, unknown, n=1))


def _siblings(found: Sequence[FoundPlugin], names: Any) -> dict[FoundPlugin, str]:
    """The plugin classes beside listed ones in their files that are not listed themselves, with how to list them."""
    types = {plugin.type for plugin in found}
    beside: dict[FoundPlugin, str] = {}
    for plugin in found:
        file, is_address, _ = str(names[plugin.position]).rpartition(":")
        module = plugin.type.__module__
        for name, other in vars(sys.modules[module]).items() if is_address else ():
            is_plugin = isinstance(other, type) and issubclass(other, BasePlugin) and other.__module__ == module
            if is_plugin and other not in types:
                beside[FoundPlugin(plugin_name(other), other, plugin.origin)] = f"{file}:{name}"
    return beside


def _unknown_readers(tree: Mapping[str, Any], types: list[type[BasePlugin]]) -> list[Problem]:
    """A problem for every reader that nobody brings; `types` gets a stand-in, so that the rest of its entry is
    checked."""
    known = [name for plugin in types for name in getattr(plugin, "readers", {})]
    problems: list[Problem] = []
    stand_ins: dict[str, dict[str, Any]] = {}
    entries = tree.get("datasets")
    for index, entry in enumerate(entries if isinstance(entries, list) else ()):
        name = entry.get("type") if isinstance(entry, dict) else None
        if not isinstance(name, str) or name in known:
            continue
        hints = unknown_name_hints(name, known)
        problems.append(Problem(f"no reader is called '{name}'", ("datasets", index, "type"), hints=hints))
        its_keys = {key: (Any, None) for key in entry if key.isidentifier() and not hasattr(DatasetEntry, key)}
        its_keys = {key: kind for key, kind in its_keys.items() if key not in DatasetEntry.model_fields}
        stand_ins[name] = stand_ins.get(name, {}) | its_keys
    readers = {name: create_model("UnknownReader", __base__=Section, **keys) for name, keys in stand_ins.items()}
    if readers:
        types.append(type("UnknownReaders", (BasePlugin,), {"readers": readers}))
    return problems


def _not_brought(
    tree: Mapping[str, Any], found: Sequence[FoundPlugin], siblings: Sequence[FoundPlugin]
) -> tuple[dict[KeyPath, FoundPlugin], set[KeyPath]]:
    """The keys and type names of `tree` that belong to plugins which are not listed, and those of nobody."""
    known = {plugin.name for plugin in found}
    strange = {path: key for path, key in _claimable(tree).items() if not any(_brings(p, path, key) for p in found)}
    if not strange:
        return {}, set()
    installed = [plugin for plugin in (*siblings, *find_installed()[0]) if plugin.name not in known]
    owners = {path: [p for p in installed if _brings(p, path, key)] for path, key in strange.items()}
    unlisted = {path: plugins[0] for path, plugins in owners.items() if plugins}
    return unlisted, strange.keys() - unlisted.keys()


def _claimable(tree: Mapping[str, Any]) -> dict[KeyPath, str]:
    """Every key that could be a plugin's section, and every type name; core keys among them match no plugin."""
    places: dict[KeyPath, str] = {}
    for root, model in ROOTS:
        section = tree.get(root)
        if isinstance(section, dict):
            places |= {(root, key): f"{root}.{key}" for key in section if key not in model.model_fields}
    entries = tree.get("datasets")
    for index, entry in enumerate(entries if isinstance(entries, list) else ()):
        if not isinstance(entry, dict):
            continue
        if isinstance(entry.get("type"), str):
            places["datasets", index, "type"] = entry["type"]
        for kind in ("data_format", "train_format"):
            value = entry.get(kind)
            if isinstance(value, str):
                places["datasets", index, kind] = value
            elif isinstance(value, dict) and isinstance(value.get("type"), str):
                places["datasets", index, kind, "type"] = value["type"]
    return places


def _brings(plugin: FoundPlugin, path: KeyPath, key: str) -> bool:
    if path[0] != "datasets":
        return plugin.type.section == key
    table = {"type": "readers", "data_format": "data_formats", "train_format": "train_formats"}[str(path[2])]
    return key in getattr(plugin.type, table, {})


def _in_file_order(problems: Sequence[Problem], source: Source) -> list[Problem]:
    """The first problem of each key, all of the plugins; those of the command line last."""
    placed = [problem.at(source.place(problem.path)) for problem in problems]
    kept: dict[tuple[Any, ...], Problem] = {}
    for problem in placed:
        several = problem.path[:1] in ((), ("plugins",))
        kept.setdefault((problem.path, problem.message if several else None), problem)
    main = str(source.file)

    def order(problem: Problem) -> tuple[bool, bool, Any]:
        place = problem.place or source.place(())
        return (not place.line, place.file != main, place)

    return sorted(kept.values(), key=order)
