"""YAML 1.2 text to plain values, with the line and column of every key and every mistake in the text itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import yaml

from dumbo.config.yaml_mistakes import syntax_problem
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
_MOST_DIGITS = 300
"""Of a whole number: a float64 has 309, and Python refuses to read more than 4300."""


def plain_scalar(text: str) -> Any:
    """The value that the unquoted `text` stands for in YAML 1.2: None, bool, int, float or the text itself."""
    if _NULL.fullmatch(text):
        return None
    if _TRUE.fullmatch(text) or _FALSE.fullmatch(text):
        return text.lower() == "true"
    if _DECIMAL.fullmatch(text):
        return int(text) if len(text) <= _MOST_DIGITS else text
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
        node = _compose(text)
        if node is not None:
            tree.value = _Builder(tree, file).build(node, ())
    except yaml.MarkedYAMLError as error:
        tree.problems.append(syntax_problem(error, text, file))
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        hints = ("save the file as UTF-8",) if "\0" in text else ()
        message = "not a text file: it holds control characters"
        tree.problems.append(Problem(message, place=Place(file, line), hints=hints))
    except RecursionError:
        return Tree(places=tree.places, problems=[Problem("nested too deeply", place=Place(file))])
    return tree


class _Loader(yaml.SafeLoader):
    """Composes nodes whose `tag` is what stands in the text, and empty where nothing does."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        if node is not None and not isinstance(event, yaml.AliasEvent):
            node.tag = event.tag or ""
        return node


def _compose(text: str) -> yaml.Node | None:
    loader = _Loader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


class _Builder:
    """Turns PyYAML's nodes into values; its own constructor would follow YAML 1.1 and forget the places."""

    def __init__(self, tree: Tree, file: str) -> None:
        self.tree = tree
        self.file = file
        self.open_nodes: list[yaml.Node] = []

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        self.tree.places.setdefault(path, self.place(node))
        self.refuse_tag(node, path)
        if any(node is parent for parent in self.open_nodes):
            self.tree.problems.append(Problem("this alias (*) contains itself", path, self.tree.places[path]))
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

    def refuse_tag(self, node: yaml.Node, path: KeyPath) -> None:
        if node.tag:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            self.problem(f"the tag {tag} is not understood", path, node, "leave it out; quotes make a text of a number")

    def scalar(self, node: yaml.ScalarNode, path: KeyPath) -> Any:
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
            self.refuse_tag(key_node, path)
            key = _name(key_node)
            if not key:
                is_template = isinstance(key_node, yaml.MappingNode) and key_node.flow_style
                self.problem("a key must be a word", path, key_node, *["put the text in quotes"][: bool(is_template)])
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
        known = {_name(key) for key, _ in own} - {None}
        for key, value in node.value:
            if not _is_merge(key):
                continue
            bases = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for base in bases:
                if not isinstance(base, yaml.MappingNode):
                    self.problem("'<<' takes a mapping", path, value, "write '<<: *name' of an anchored mapping")
                    continue
                if any(base is parent for parent in self.open_nodes):
                    self.problem("this alias (*) contains itself", path, key)
                    continue
                self.open_nodes.append(base)
                merged = [item for item in self.own_items_last(base, path) if _name(item[0]) not in known]
                self.open_nodes.pop()
                known |= {_name(item[0]) for item in merged} - {None}
                yield from merged
        yield from own

    def place(self, node: yaml.Node) -> Place:
        return Place(self.file, node.start_mark.line + 1, node.start_mark.column + 1)

    def problem(self, message: str, path: KeyPath, node: yaml.Node, *hints: str) -> None:
        self.tree.problems.append(Problem(message, path, self.place(node), hints))


def _name(key: yaml.Node) -> str | None:
    """The key's text; None for a key that is a list or a mapping."""
    return str(key.value) if isinstance(key, yaml.ScalarNode) else None


def _is_merge(key: yaml.Node) -> bool:
    return isinstance(key, yaml.ScalarNode) and key.value == "<<" and key.style is None
