"""Types and values in the words of people who write configuration files."""

from __future__ import annotations

import math
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dumbo.redact import redact_text


def type_words(field: FieldInfo) -> str:
    """What a field takes: `a whole number of at least 1`, `one of auto, float32, ...`."""
    bounds = _bounds(field.metadata)
    return _words(field.annotation, bounds)


def value_words(value: Any) -> str:
    """A value and its kind, for "got ...": `'fast' (a text)`, `a list`."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return f"{str(value).lower()} (true or false)"
    if isinstance(value, str):
        value = redact_text(value)  # before it is cut: half a secret is not recognised
        return f"'{value if len(value) <= 60 else value[:57] + '...'}' (a text)"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(value, int):
        return f"{value} (a whole number)"
    return f"{value} (a number)"


def yaml_words(value: Any) -> str:
    """A value as YAML would have it in one line; None for "nothing is set" is `null`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, BaseModel):
        return "{...}" if value.model_fields_set else "{}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(yaml_words(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {yaml_words(item)}" for key, item in value.items()) + "}"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value).replace("inf", ".inf").replace("nan", ".nan")
    return str(value)


def _words(annotation: Any, bounds: str = "") -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *metadata = get_args(annotation)
        return _words(inner, _bounds(metadata) or bounds)
    if origin in (Union, types.UnionType):
        parts = [_words(part, bounds) for part in get_args(annotation) if part is not type(None)]
        return " or ".join(dict.fromkeys(parts))
    if origin is Literal:
        names = [yaml_words(name) for name in get_args(annotation)]
        return names[0] if len(names) == 1 else f"one of {', '.join(names)}"
    if origin in (tuple, list, set, frozenset):
        return f"a list, each {_words(get_args(annotation)[0])}"
    if origin is dict or annotation is dict:
        return "a mapping"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "a mapping"
    plain = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    words = plain.get(annotation, "a value")
    return f"{words} {bounds}" if bounds and words in ("a whole number", "a number", "a text") else words


def _bounds(metadata: list[Any] | tuple[Any, ...]) -> str:
    return " and ".join(_bound_words(metadata))


def _bound_words(metadata: list[Any] | tuple[Any, ...]) -> Iterator[str]:
    names = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
    for item in metadata:
        if isinstance(item, FieldInfo):
            yield from _bound_words(item.metadata)
        if getattr(item, "min_length", None):
            yield "that is not empty"
        for attribute, words in names.items():
            bound = getattr(item, attribute, None)
            if bound is not None:
                yield f"{words} {bound}"
