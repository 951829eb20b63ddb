"""Read a run's configuration: the file, what it extends, environment values, overrides; each value with its place."""

from __future__ import annotations

import codecs
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dumbo.config.yaml_tree import Tree, parse_yaml, plain_scalar
from dumbo.errors import KeyPath, Place, Problem, dotted, key_path
from dumbo.redact import is_secret_name, learn_secrets

_COMMAND_LINE = Place("command line")
_ENVIRONMENT = re.compile(r"\$\{env:([^}]*)\}")


@dataclass
class Source:
    """The raw configuration: plain values, where each was written, and what was wrong in the text."""

    file: Path
    tree: dict[str, Any] = field(default_factory=dict)
    places: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    templates: dict[KeyPath, str] = field(default_factory=dict)
    """The texts with `${env:NAME}` as they were written: what is saved and logged in place of their values."""
    overrides: tuple[str, ...] = ()
    """What the command line said: `trainer.arguments.learning_rate=3e-4`."""

    def place(self, path: KeyPath) -> Place:
        """Where `path` was written, or the nearest key above it that was."""
        for length in range(len(path), -1, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return Place(str(self.file))


def load_source(file: Path, overrides: Sequence[str] = ()) -> Source:
    """Read `file` and apply `overrides` (`trainer.arguments.learning_rate=3e-4`).

    Nothing is raised: what is wrong is in the result's `problems`, and the tree holds what could be read; nothing, if
    the file or one that it extends could not.
    """
    source = Source(file, overrides=tuple(overrides))
    tree = _load_file(file, (), source.problems)
    if not isinstance(tree.value, dict):
        return source
    source.tree, source.places = tree.value, tree.places
    for override in overrides:
        _apply_override(override, source, tree)
    source.tree = _fill_environment(source.tree, (), source, tree, os.environ)
    learn_secrets(source.tree)
    return source


def _load_file(file: Path, chain: tuple[Path, ...], problems: list[Problem], wanted_by: Place | None = None) -> Tree:
    name = str(file)
    if file.resolve() in chain:
        problems.append(Problem("extends: these files extend each other", place=wanted_by))
        return Tree()
    text = _read_text(file, problems, wanted_by)
    if text is None:
        return Tree()
    tree = parse_yaml(text, name)
    problems += tree.problems
    if tree.problems and tree.value is None:
        return tree
    if tree.value is None:
        hint = "a run needs 'model', 'datasets' and 'plugins'; 'dumbo docs quickstart' shows one"
        problems.append(Problem("the file is empty", place=Place(name), hints=(hint,)))
    elif not isinstance(tree.value, dict):
        kind = "a list" if isinstance(tree.value, list) else "a single value"
        hint = "the top level holds the sections 'model:', 'datasets:', 'trainer:' and 'plugins:'"
        problems.append(Problem(f"expected a mapping, got {kind}", place=tree.places[()], hints=(hint,)))
        tree.value = None
    elif "extends" in tree.value:
        return _extend(tree, file, chain, problems)
    return tree


def _read_text(file: Path, problems: list[Problem], wanted_by: Place | None) -> str | None:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        problems.append(_encoding_problem(error, str(file)))
    except IsADirectoryError:
        problems.append(Problem(f"{file} is a folder; name the YAML file in it", place=wanted_by))
    except FileNotFoundError:
        beside = [path.name for path in file.parent.glob("*.y*ml")] if file.parent.is_dir() else []
        near = difflib.get_close_matches(file.name, beside, n=1)
        hints = (f"did you mean {file.parent / near[0]}?",) if near else ()
        problems.append(Problem(f"{file}: there is no such file", place=wanted_by, hints=hints))
    except OSError as error:
        problems.append(Problem(f"{file}: cannot be read: {error.strerror}", place=wanted_by))
    return None


def _encoding_problem(error: UnicodeDecodeError, file: str) -> Problem:
    """Where the first byte is that UTF-8 does not have; nowhere in a file that is no text or has two bytes each."""
    before = error.object[: error.start]
    hints = ("save the file as UTF-8",)
    if error.object[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return Problem("not a text file in UTF-8, but in UTF-16", place=Place(file), hints=hints)
    if b"\0" in error.object:
        return Problem("not a text file in UTF-8", place=Place(file))
    line = before.rpartition(b"\n")[2].decode("utf-8")
    return Problem("not a text file in UTF-8", place=Place(file, before.count(b"\n") + 1, len(line) + 1), hints=hints)


def _extend(tree: Tree, file: Path, chain: tuple[Path, ...], problems: list[Problem]) -> Tree:
    """The files named by `extends`, later ones over earlier ones, and `tree` over all of them."""
    names = tree.value.pop("extends")
    place = tree.places.pop(("extends",))
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        message = "expected the name of a file, or a list of names"
        problems.append(Problem(message, ("extends",), place, ("extends: base.yaml",)))
        return tree
    merged = Tree({})
    for name in names:
        base = _load_file(file.parent / name, (*chain, file.resolve()), problems, place)
        if not isinstance(base.value, dict):
            return Tree()  # what that file would say is not missing
        _merge(merged, base, ())
    _merge(merged, tree, ())
    merged.places[()] = tree.places[()]
    return merged


def _merge(below: Tree, above: Tree, path: KeyPath) -> None:
    """Lay `above` over `below`: mappings are merged key by key, null takes a section away, all else is replaced."""
    lower, upper = _at(below.value, path), _at(above.value, path)
    if path in above.places:
        below.places[path] = above.places[path]
    for key, value in upper.items():
        if isinstance(value, dict) and isinstance(lower.get(key), dict):
            _merge(below, above, (*path, key))
            continue
        _forget(below, (*path, key))
        if value is None and _is_section(lower, path, key):
            del lower[key]
            continue
        lower[key] = value
        here = (*path, key)
        below.places |= {p: place for p, place in above.places.items() if p[: len(here)] == here}
        below.unquoted |= {p for p in above.unquoted if p[: len(here)] == here}


def _is_section(parent: Any, path: KeyPath, key: Any) -> bool:
    """Whether there is a section such as `model.peft`, of a plugin perhaps that is not listed any more."""
    return len(path) == 1 and isinstance(parent, dict) and isinstance(parent.get(key), dict)


def _forget(tree: Tree, path: KeyPath) -> None:
    tree.places = {p: place for p, place in tree.places.items() if p[: len(path)] != path}
    tree.unquoted = {p for p in tree.unquoted if p[: len(path)] != path}


def _at(value: Any, path: KeyPath) -> Any:
    for part in path:
        value = value[part]
    return value


def _apply_override(override: str, source: Source, tree: Tree) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        message = f"'{override}' is not an override"
        source.problems.append(Problem(message, place=_COMMAND_LINE, hints=("write section.key=value",)))
        return
    path = key_path(key)
    value = parse_yaml(text, str(_COMMAND_LINE))
    if value.problems:
        message = "the value is not valid YAML"
        if not any(is_secret_name(str(part)) for part in path):
            message += f": {text}"
        source.problems.append(Problem(message, path, _COMMAND_LINE, ("put it in quotes if it is a text",)))
        return
    parent: Any = source.tree
    for depth, part in enumerate(path[:-1]):
        below = _child(parent, part)
        if below is None and isinstance(parent, dict) and isinstance(part, str):
            below = parent[part] = {}
            source.places.setdefault(path[: depth + 1], _COMMAND_LINE)
        if not isinstance(below, dict | list):
            source.problems.append(_misplaced(parent, path, depth))
            return
        parent = below
    last = path[-1]
    if isinstance(parent, list) and last not in range(len(parent)):
        source.problems.append(_misplaced(parent, path, len(path) - 1))
        return
    for stale in [p for p in source.places if p[: len(path)] == path]:
        del source.places[stale]
    if value.value is None and _is_section(parent, path[:-1], last):
        del parent[last]
        return
    parent[last if isinstance(parent, list) else str(last)] = value.value
    source.places |= {(*path, *p): _COMMAND_LINE for p in value.places}
    tree.unquoted |= {(*path, *p) for p in value.unquoted}


def _misplaced(parent: Any, path: KeyPath, depth: int) -> Problem:
    """Why `path[depth]` leads nowhere in `parent`, which stands at `path[:depth]`."""
    section, part = dotted(path[:depth]), path[depth]
    if not isinstance(parent, list):
        message = f"'{dotted(path[: depth + 1])}' is not a section in this configuration"
    elif isinstance(part, int) and part < len(parent):
        message = f"'{dotted(path[: depth + 1])}' is no mapping, and has no keys"
    elif isinstance(part, int):
        entries = "1 entry" if len(parent) == 1 else f"{len(parent)} entries"
        message = f"'{section}' has {entries}, counted from 0"
    else:
        hints = (f"write {dotted((*path[:depth], 0, *path[depth:]))}",)
        return Problem(f"'{section}' is a list", path, _COMMAND_LINE, hints)
    return Problem(message, path, _COMMAND_LINE)


def _child(parent: Any, part: str | int) -> Any:
    if isinstance(parent, dict):
        return parent.get(str(part))
    if isinstance(parent, list) and isinstance(part, int) and part < len(parent):
        return parent[part]
    return None


def _fill_environment(value: Any, path: KeyPath, source: Source, tree: Tree, environment: Mapping[str, str]) -> Any:
    """`value` with every `${env:NAME}` replaced; an unquoted one that stands alone may become a number."""
    if isinstance(value, dict):
        return {key: _fill_environment(item, (*path, key), source, tree, environment) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill_environment(item, (*path, i), source, tree, environment) for i, item in enumerate(value)]
    if not isinstance(value, str) or "${env:" not in value:
        return value
    source.templates[path] = value
    for name in _ENVIRONMENT.findall(value):
        if name not in environment:
            message = f"the environment variable '{name}' is not set"
            source.problems.append(Problem(message, path, source.place(path), (f"export {name}=...",)))
    if "${env:" in _ENVIRONMENT.sub("", value):
        source.problems.append(Problem("'${env:' has no end", path, source.place(path), ("write ${env:NAME}",)))
    filled = _ENVIRONMENT.sub(lambda match: environment.get(match[1], ""), value)
    return plain_scalar(filled) if path in tree.unquoted and _ENVIRONMENT.fullmatch(value) else filled
