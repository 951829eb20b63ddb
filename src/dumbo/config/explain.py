"""What is wrong with a configuration, in words: pydantic's findings as problems with places and suggestions."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from dumbo.config.advice import value_advice
from dumbo.config.foreign_keys import FOREIGN_KEYS, FOREIGN_MAPPINGS, FOREIGN_PLACES, FOREIGN_TYPES
from dumbo.config.options import Option, all_options, model_at
from dumbo.config.schema import RunConfig
from dumbo.config.source import Source
from dumbo.config.words import type_words, value_words
from dumbo.errors import KeyPath, Problem, dotted
from dumbo.redact import is_secret_name

UNKNOWN_OPTION = "unknown option"
_MOST_OPTIONS_SHOWN = 12
_USUAL_PLUGINS = "usual is: plugins: [transformers, transformers_trainer, polars, jinja_formatter]"


def explain_errors(error: ValidationError, source: Source, model: type[RunConfig]) -> list[Problem]:
    """One problem per key that `error` complains about, in pydantic's order; `source` is what was validated."""
    problems: dict[KeyPath, Problem] = {}
    options = all_options(model)
    for details in error.errors(include_url=False):
        path = _written_path(details, source.tree)
        if path not in problems and not _follows_from_another(details, source.tree, path):
            problems[path] = _explain(details, path, source, model, options)
    return list(problems.values())


def _written_path(details: ErrorDetails, tree: Any) -> KeyPath:
    """The error's location without the names of union members that pydantic puts into it."""
    path: list[str | int] = []
    value = tree
    parts, type_is_known = details["loc"], False
    for place, part in enumerate(parts):
        # A type may have an option of its own name: the first such part is the type, and the second the option.
        may_be_type = isinstance(value, dict) and value.get("type") == part and not type_is_known
        type_is_known = may_be_type and (place + 1 < len(parts) or isinstance(details["input"], dict))
        if type_is_known:
            continue
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            continue
        path.append(part)
    last = details["loc"][-1] if details["loc"] else None
    if details["type"] == "missing" and last is not None:
        path.append(last)
    return tuple(path)


def _follows_from_another(details: ErrorDetails, tree: Any, path: KeyPath) -> bool:
    """Whether a list is called too short only because its entries were wrong."""
    return details["type"] == "too_short" and bool(_value_at(tree, path))


def _explain(
    details: ErrorDetails, path: KeyPath, source: Source, model: type[RunConfig], options: Sequence[Option]
) -> Problem:
    kind, context = details["type"], details.get("ctx", {})
    place = source.place(path)
    if kind == "extra_forbidden":
        return Problem(UNKNOWN_OPTION, path, place, _suggestions(path, source, model, options))
    if kind == "missing":
        return Problem("is missing", path, place, _field_hint(path, source, model))
    if kind == "choice_missing":
        message = f"a {context['what']} needs a 'type'"
        return Problem(message, path, place, (f"known are: {', '.join(context['known']) or 'none'}",))
    if kind == "choice_form":
        return Problem(f"expected the name of a {context['what']}, or a mapping with 'type'", path, place)
    if kind == "choice_unknown":
        typed = (*path, "type") if isinstance(_value_at(source.tree, path), dict) else path
        if isinstance(_value_at(source.tree, typed), dict):
            message = f"expected the name of a {context['what']}, got a mapping"
            return Problem(message, typed, source.place(typed), (FOREIGN_MAPPINGS["type"],))
        hints = unknown_name_hints(context["type"], context["known"])
        return Problem(f"no {context['what']} is called '{context['type']}'", typed, source.place(typed), hints)
    if kind == "value_error":
        return Problem(str(context.get("error", details["msg"])), path, place)
    return Problem(_expected_got(details, path, source, model), path, place, _near_value(path, source, model, details))


def _expected_got(details: ErrorDetails, path: KeyPath, source: Source, model: type[RunConfig]) -> str:
    value = _value_at(source.tree, path)
    if details["type"] == "too_short":
        return "needs at least one entry"
    got = "what is not shown here" if any(is_secret_name(str(part)) for part in path) else value_words(value)
    parent = model_at(model, source.tree, path[:-1])
    field = parent.model_fields.get(str(path[-1])) if parent and path else None
    if field is not None:
        return f"expected {type_words(field)}, got {got}"
    message = details["msg"].replace("Input should be", "expected").replace("valid string", "text")
    return f"{message}, got {got}"


def _near_value(path: KeyPath, source: Source, model: type[RunConfig], details: ErrorDetails) -> tuple[str, ...]:
    value = _value_at(source.tree, path)
    name = str(path[-1]) if path else ""
    if is_secret_name(name):
        return ()
    if name in FOREIGN_MAPPINGS and isinstance(value, dict):
        return (FOREIGN_MAPPINGS[name],)
    parent = model_at(model, source.tree, path[:-1])
    field = parent.model_fields.get(name) if parent else None
    advice = value_advice(name, value, field) if field else None
    if path == ("plugins",):
        return (advice or _USUAL_PLUGINS,)
    if advice:
        return (advice,)
    expected = str(details.get("ctx", {}).get("expected", ""))
    names = [name.strip("'") for name in expected.replace(" or ", ", ").split(", ")] if expected else []
    near = difflib.get_close_matches(str(value), names, n=1)
    return (f"did you mean '{near[0]}'?",) if near else ()


def unknown_name_hints(name: str, known: Iterable[str]) -> tuple[str, ...]:
    """The nearest of the known names, and all of them."""
    known = list(known)
    if name in FOREIGN_TYPES and name not in known:
        return (FOREIGN_TYPES[name], *([f"known are: {', '.join(known)}"] if known else []))
    near = difflib.get_close_matches(name, known, n=1)
    listed = f"known are: {', '.join(known)}" if known else "none of the listed plugins brings any"
    return (f"did you mean '{near[0]}'?", listed) if near else (listed,)


def _field_hint(path: KeyPath, source: Source, model: type[RunConfig]) -> tuple[str, ...]:
    parent = model_at(model, source.tree, path[:-1])
    field = parent.model_fields.get(str(path[-1])) if parent else None
    if path == ("plugins",):
        return (_USUAL_PLUGINS,)
    return (" ".join((field.description or "").split()),) if field and field.description else ()


def _suggestions(path: KeyPath, source: Source, model: type[RunConfig], options: Sequence[Option]) -> tuple[str, ...]:
    """What an unknown key might have meant: a near name here, the same name elsewhere, or another tool's word."""
    name = str(path[-1])
    parent = model_at(model, source.tree, path[:-1])
    known = list(parent.model_fields) if parent else []
    elsewhere = [option.key for option in options if option.name == name]
    foreign = foreign_hint(path, _value_at(source.tree, path), is_option=bool(elsewhere))
    if foreign:
        return (foreign,)
    near = _nearest(name, known)
    if near:
        return (f"did you mean {' or '.join(repr(other) for other in near)}?",)
    if elsewhere:
        return (f"it belongs in '{elsewhere[0].rpartition('.')[0] or 'the top level'}'",)
    spelled = difflib.get_close_matches(name, [option.name for option in options], n=1, cutoff=0.8)
    if spelled:
        key = next(option.key for option in options if option.name == spelled[0])
        return (f"did you mean '{key}'?",)
    return (known_options(path[:-1], known),)


def foreign_hint(path: KeyPath, value: Any = None, *, is_option: bool = False) -> str | None:
    """What to write for a key of another tool; None for other keys, and for the name of an option (`is_option`)."""
    name = str(path[-1])
    if name in FOREIGN_MAPPINGS and isinstance(value, dict):
        return FOREIGN_MAPPINGS[name]
    place = dotted(tuple(part for part in path if isinstance(part, str)))
    return FOREIGN_PLACES.get(place) or (None if is_option else FOREIGN_KEYS.get(name))


def _nearest(name: str, known: Sequence[str]) -> list[str]:
    """The known name that is nearest, or two that are equally near; none that is far."""
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.7)
    likeness = [difflib.SequenceMatcher(None, name, other).ratio() for other in near]
    return near if len(set(likeness)) == 1 else near[:1]


def known_options(path: KeyPath, names: Sequence[str]) -> str:
    """The options of a section in a line, or where to read them if they are many."""
    where = dotted(path) or "the top level"
    if len(names) > _MOST_OPTIONS_SHOWN:
        return f"'dumbo explain {dotted(tuple(p for p in path if isinstance(p, str)))}' lists the {len(names)} options"
    return f"{where} takes: {', '.join(names)}"


def _value_at(tree: Any, path: KeyPath) -> Any:
    value = tree
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            return None
    return value
