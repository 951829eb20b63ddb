"""Reads the recipes of llmcompressor, as far as they say that zeros are to stay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dumbo.config.explain import unknown_name_hints
from dumbo.config.yaml_tree import Tree, parse_yaml
from dumbo.errors import ConfigError, KeyPath, Problem
from dumbo.local_paths import near_paths

SECTION: KeyPath = ("model", "llm_compressor")
_RECIPE: KeyPath = (*SECTION, "recipe")
CONSTANT = "ConstantPruningModifier"
_OF_STAGES = frozenset({"run_type", "args"})
"""What a stage may have beside its modifiers; it says nothing about zeros."""
_EXAMPLE = "{finetuning_stage: {finetuning_modifiers: {ConstantPruningModifier: {targets: [...], start: 0}}}}"
_KEYS = ("targets", "start", "end", "update")
_ELSEWHERE = (
    "llmcompressor demands an older Transformers than this: run its recipe in an environment of its own, "
    "and write the folder that it saves as model.base_model"
)


@dataclass(frozen=True)
class Pruning:
    """Which zeros stay, and until when."""

    targets: tuple[str, ...]
    where: KeyPath
    """Of the targets in the configuration."""
    end: float | None = None
    """The epoch from which they may be trained again; None: they never are."""


def read_recipe(recipe: str | Mapping[str, Any]) -> Pruning:
    """The one constant pruning of a recipe, `{STAGE: {GROUP_modifiers: {ConstantPruningModifier: {...}}}}`, or of the
    YAML file that is named.

    Raises:
        ConfigError: no such modifier or several, other modifiers, and values that cannot be followed; a file that is
            missing, or holds something else.
    """
    if not isinstance(recipe, str):
        return _read(recipe)
    tree = _read_file(Path(recipe))
    try:
        return _read(tree.value)
    except ConfigError as error:
        raise ConfigError(_in_file(problem, tree) for problem in error.problems) from None


def _read_file(file: Path) -> Tree:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        if isinstance(error, FileNotFoundError):
            message, hints = f"there is no file '{file}'", near_paths(file)
        else:
            message, hints = f"'{file}' cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}", ()
        raise ConfigError([Problem(message, _RECIPE, hints=hints)]) from error
    tree = parse_yaml(text, str(file))
    if tree.problems:
        raise ConfigError(tree.problems)
    if not isinstance(tree.value, dict):
        raise ConfigError([Problem(f"'{file}' holds no recipe, which is a mapping", _RECIPE, hints=(_EXAMPLE,))])
    return tree


def _in_file(problem: Problem, tree: Tree) -> Problem:
    """The same problem where it stands in the file, with the names of keys as they are there."""
    path = inside = problem.path[len(_RECIPE) :]
    while path not in tree.places:  # that of the document is always there
        path = path[:-1]
    return replace(problem, path=inside, place=tree.places[path])


def _read(recipe: Mapping[str, Any]) -> Pruning:
    path = _RECIPE
    found = list(_modifiers(recipe, path))
    problems = [
        Problem(f"'{name}' is not available here", (*where, name), hints=(_ELSEWHERE,))
        for name, _, where in found
        if name != CONSTANT
    ]
    constant = [(values, (*where, name)) for name, values, where in found if name == CONSTANT]
    if not found:
        problems.append(Problem("has no modifiers", path, hints=(_EXAMPLE,)))
    elif len(constant) > 1:
        problems.append(Problem(f"has {CONSTANT} {len(constant)} times", path, hints=("write all targets into one",)))
    for values, where in constant:
        problems += _problems(values, where)
    if problems:
        raise ConfigError(problems)
    values, where = constant[0]
    targets = values["targets"]
    end = values.get("end")
    until = None if end is None or end < 0 else float(end)
    return Pruning((targets,) if isinstance(targets, str) else tuple(targets), (*where, "targets"), until)


def _modifiers(tree: Mapping[str, Any], path: KeyPath) -> Iterator[tuple[str, Any, KeyPath]]:
    """Name, values and place of every modifier: below `..._modifiers` or `modifiers` in a stage, or in no stage."""
    for key, value in tree.items():
        if key.endswith("Modifier"):
            yield key, value, path
        elif isinstance(value, Mapping):
            yield from _modifiers(value, (*path, key))
        elif key not in _OF_STAGES:
            raise ConfigError([Problem("is neither a stage nor modifiers", (*path, key))])


def _problems(values: Any, where: KeyPath) -> Iterator[Problem]:
    if not isinstance(values, Mapping):
        yield Problem("needs targets", where, hints=("targets: ['re:.*q_proj', 're:.*down_proj'], start: 0",))
        return
    for key in values:
        if key not in _KEYS:
            hints = unknown_name_hints(str(key), list(_KEYS))
            yield Problem("unknown option", (*where, str(key)), hints=hints)
    targets = values.get("targets")
    listed = isinstance(targets, list | tuple) and targets and all(isinstance(target, str) for target in targets)
    if not (listed or (isinstance(targets, str) and targets)):
        yield Problem(
            "must name weights, layers, or a class of layers", (*where, "targets"), hints=("targets: [Linear]",)
        )
    if values.get("update") is not None:  # llmcompressor has the key for every modifier, and reads it for none
        message = "would change nothing: zeros are made zero again after every step, as llmcompressor does it too"
        yield Problem(message, (*where, "update"), hints=("remove it",))
    for key in ("start", "end"):
        value = values.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            yield Problem("must be a number of epochs", (*where, key))
    if isinstance(values.get("start"), int | float) and values["start"] > 0:
        message = "the zeros of the model would be trained away before"
        yield Problem(message, (*where, "start"), hints=("write start: 0",))
    if values.get("end") == 0:
        yield Problem("no zero would be kept", (*where, "end"), hints=("leave it out: zeros then stay to the end",))
