"""What to write in place of a value of the wrong kind: the words of YAML 1.1, quotes, commas, forgotten brackets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from dumbo.config.options import section_types
from dumbo.config.section import Section
from dumbo.config.yaml_tree import plain_scalar

_YES = frozenset({"yes", "on", "y", "true"})
_NO = frozenset({"no", "off", "n", "false"})
_NO_SPACE = re.compile(r"[A-Za-z_][\w.-]*:(?=[^\s:/])")


def value_advice(name: str, value: Any, field: FieldInfo) -> str | None:
    """How to write the value of the option `name` so that its `field` takes it; None where nothing is known."""
    kinds = set(_kinds(field.annotation))
    sections = section_types(field.annotation)
    if list in kinds:
        return _list_advice(name, value, bool(sections))
    if isinstance(value, str):
        if sections or dict in kinds:
            return _section_advice(name, value, sections)
        return (_truth_advice(value) if bool in kinds else None) or (_number_advice(value, kinds) if kinds else None)
    if isinstance(value, float) and int in kinds and value.is_integer():
        return f"write {int(value)}"
    return None


def _kinds(annotation: Any) -> Iterator[type]:
    """The plain types that an annotation admits; tuples count as lists."""
    if get_origin(annotation) is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif get_origin(annotation) in (Union, UnionType):
        for part in get_args(annotation):
            yield from _kinds(part)
    else:
        plain = get_origin(annotation) or annotation
        plain = list if plain is tuple else plain
        if plain in (bool, int, float, list, dict):
            yield plain


def _truth_advice(value: str) -> str | None:
    word = value.lower()
    if value in ("true", "false"):
        return f"write it without quotes: {value}"
    return f"write {str(word in _YES).lower()}" if word in _YES | _NO else None


def _number_advice(value: str, kinds: set[type]) -> str | None:
    if not kinds & {int, float} or len(value) > 60:
        return None
    if _is_number(value):
        return f"write it without quotes: {value}"
    if _is_number(value.rstrip().removesuffix(",")):
        return f"remove the comma: {value.rstrip().removesuffix(',')}"
    digits = re.sub(r"(?<=\d)[_,](?=\d)", "", value)
    return f"write {digits}" if _is_number(digits) else None


def _is_number(text: str) -> bool:
    return type(plain_scalar(text)) in (int, float)


def _list_advice(name: str, value: Any, of_sections: bool) -> str | None:
    if of_sections:
        return "put '- ' before its first key, and indent the others alike" if isinstance(value, dict) else None
    return f"write {name}: [{value}]" if isinstance(value, str) and value and len(value) < 60 else None


def _section_advice(name: str, value: str, sections: list[type[Section]]) -> str | None:
    """A text where a mapping belongs: a key without its space, or what its first option would take."""
    if _NO_SPACE.match(value):
        return "write a space after ':'"
    if len(sections) != 1 or not sections[0].model_fields:
        return None
    first, field = next(iter(sections[0].model_fields.items()))
    is_text = str in (field.annotation, *get_args(field.annotation))
    return f"write {name}: {{{first}: {value}}}" if is_text and len(value) < 60 else None
