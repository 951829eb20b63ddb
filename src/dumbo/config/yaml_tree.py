"""YAML 1.2 text to plain values, with the line and column of every key and every mistake in the text itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import yaml

from dumbo.errors import KeyPath, Place, Problem

# The core schema of YAML 1.2 (section 10.3.2 of the specification): `yes` and `on` are words, `1e-4` is a number.
_NULL = re.compile(r"~|null|Null|NULL|")
_TRUE = re.compile(r"true|True|TRUE")
_FALSE = re.compile(r"false|False|FALSE")
_DECIMAL = re.compile(r"[-+]?[0-9]+")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)")
_NAN = re.compile(r"\.(nan|NaN|NAN)")


def plain_scalar(text: str) -> Any:
    """The value that the unquoted `text` stands for in YAML 1.2: None, bool, int, float or the text itself."""
    if _NULL.fullmatch(text):
        return None
    if _TRUE.fullmatch(text) or _FALSE.fullmatch(text):
        return text.lower() == "true"
    if _DECIMAL.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    if _INFINITE.fullmatch(text) or _NAN.fullmatch(text):
        return float(text.replace(".", ""))
    return text


@dataclass
class Tree:
    """A document as plain values, and where each of them stands."""

    value: Any = None
    places: dict[KeyPath, Place] = field(default_factory=dict)
    """The place of every key and list item; `()` is the document."""
    problems: list[Problem] = field(default_factory=list)
    unquoted: set[KeyPath] = field(default_factory=set)
    """The texts that were written without quotes: `${env:N}` among them may become a number."""


def parse_yaml(text: str, file: str) -> Tree:
    """Parse `text`, naming `file` in places. Mistakes are collected in the tree's `problems`, never raised."""
    tree = Tree(places={(): Place(file, 1, 1)})
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        tree.problems.append(_syntax_problem(error, text, file))
        return tree
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        tree.problems.append(Problem("not a text file: it holds control characters", place=Place(file, line)))
        return tree
    if node is not None:
        tree.value = _Builder(tree, file).build(node, ())
    return tree


class _Builder:
    """Turns PyYAML's nodes into values; its own constructor would follow YAML 1.1 and forget the places."""

    def __init__(self, tree: Tree, file: str) -> None:
        self.tree = tree
        self.file = file
        self.open_nodes: list[yaml.Node] = []

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        self.tree.places.setdefault(path, self.place(node))
        if any(node is parent for parent in self.open_nodes):
            self.problem("this alias (*) contains itself", path, node)
            return None
        self.open_nodes.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return self.mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self.build(item, (*path, index)) for index, item in enumerate(node.value)]
            return self.scalar(cast("yaml.ScalarNode", node), path)
        finally:
            self.open_nodes.pop()

    def scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
        if node.tag.startswith("!") or (node.tag.startswith("tag:") and not node.tag.startswith("tag:yaml.org,2002:")):
            self.problem(f"the tag {node.tag} is not understood", path, node, "write the value without the tag")
        if node.style is not None:
            return node.value
        value = plain_scalar(node.value)
        if isinstance(value, str):
            self.tree.unquoted.add(path)
        return value

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        first_seen: dict[str, Place] = {}
        for key_node, value_node in self.own_items_last(node, path):
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str) or not key:
                self.problem("a key must be a word", path, key_node)
                continue
            place = self.place(key_node)
            if key in first_seen:
                message = "this key is written twice"
                self.problem(
                    message, (*path, key), key_node, f"it stands at {first_seen[key]} already; keep one of them"
                )
                continue
            first_seen[key] = place
            for stale in [old for old in self.tree.places if old[: len(path) + 1] == (*path, key)]:
                del self.tree.places[stale]
            self.tree.places[*path, key] = place
            values[key] = self.build(value_node, (*path, key))
        return values

    def own_items_last(self, node: yaml.MappingNode, path: KeyPath) -> Iterator[tuple[yaml.Node, yaml.Node]]:
        """The mapping's items, those merged in by `<<: *base` first and only where the mapping has no such key."""
        own = [item for item in node.value if not _is_merge(item[0])]
        own_keys = {key.value for key, _ in own if isinstance(key, yaml.ScalarNode)}
        for key, value in node.value:
            if not _is_merge(key):
                continue
            bases = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for base in bases:
                if not isinstance(base, yaml.MappingNode):
                    self.problem("'<<' takes a mapping", path, value, "write '<<: *name' of an anchored mapping")
                    continue
                merged = [item for item in base.value if item[0].value not in own_keys]
                own_keys |= {item[0].value for item in merged}
                yield from merged
        yield from own

    def place(self, node: yaml.Node) -> Place:
        return Place(self.file, node.start_mark.line + 1, node.start_mark.column + 1)

    def problem(self, message: str, path: KeyPath, node: yaml.Node, *hints: str) -> None:
        self.tree.problems.append(Problem(message, path, self.place(node), hints))


def _is_merge(key: yaml.Node) -> bool:
    return isinstance(key, yaml.ScalarNode) and key.value == "<<" and key.style is None


def _syntax_problem(error: yaml.MarkedYAMLError, text: str, file: str) -> Problem:
    """What the parser could not read, in the words of somebody who writes configuration files."""
    mark = error.problem_mark or error.context_mark
    if mark is None:
        return Problem(f"not valid YAML: {error.problem}", place=Place(file))
    place = Place(file, mark.line + 1, mark.column + 1)
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    # The mark may stand behind the line with the tab: the scanner notices at the next token.
    for number in (mark.line, mark.line - 1):
        if 0 <= number < len(lines) and re.match(r" *\t", lines[number]):
            return Problem(
                "indented with a tab", place=Place(file, number + 1, 1), hints=("YAML is indented with spaces",)
            )
    hints = [f"the line is: {line.strip()}"] if line.strip() else []
    if "mapping values are not allowed" in str(error.problem):
        hints.append("a text that contains ': ' needs quotes, and a key needs the same indentation as its neighbours")
    if "could not find expected ':'" in str(error.problem):
        hints.append("every line of a mapping is written 'key: value'")
    return Problem(f"not valid YAML: {error.problem}", place=place, hints=tuple(hints))
