"""Tools and calls of tools in the one shape that chat templates read, from the shapes that data sets have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dumbo.data.json_text import read_json
from dumbo.data.records import Origin
from dumbo.data.row_values import kind_of, list_names

_TOOL_HINT = "each tool is {type: function, function: {name, description, parameters}}, or the inner mapping alone"
_CALL_HINT = "each call is {type: function, function: {name, arguments}}, or the inner mapping alone"


def read_tools(value: Any, what: str, origin: Origin) -> tuple[Mapping[str, Any], ...]:
    """The tools' schemas from a list, or from the text of one, each as `{type: function, function: ...}`.

    Raises:
        DataError: broken JSON, or something that is no schema of a function.
    """
    if isinstance(value, str):
        value = read_json(value, what, origin) if value.strip() else []
    if not isinstance(value, list | tuple):
        raise origin.error(f"{what} is not a list of JSON schemas", f"it is {kind_of(value)}", _TOOL_HINT)
    return tuple(_read_tool(item, f"tool {number} of {what}", origin) for number, item in enumerate(value, start=1))


def read_calls(value: Any, what: str, origin: Origin) -> list[Mapping[str, Any]]:
    """The calls from a list, from a single call, or from the text of either, with their arguments as mappings.

    Raises:
        DataError: broken JSON, or something that is no call of a function.
    """
    value = read_json(value, what, origin) if isinstance(value, str) else value
    calls = [value] if isinstance(value, Mapping) else value
    if not isinstance(calls, list | tuple):
        raise origin.error(f"{what} is {kind_of(value)}", "it must be a list of calls", _CALL_HINT)
    return [_read_call(item, f"call {number} of {what}", origin) for number, item in enumerate(calls, start=1)]


def _read_tool(value: Any, what: str, origin: Origin) -> Mapping[str, Any]:
    value = read_json(value, what, origin) if isinstance(value, str) else value
    if not isinstance(value, Mapping):
        raise origin.error(f"{what} is {kind_of(value)}", _TOOL_HINT)
    outer, function = _split(value, what, origin, _TOOL_HINT)
    parameters = function.get("parameters")
    if isinstance(parameters, str):
        parameters = read_json(parameters, f"'parameters' of {what}", origin)
        function = {**function, "parameters": parameters}
    if not isinstance(parameters, Mapping | None):
        raise origin.error(f"'parameters' of {what} is {kind_of(parameters)}", "it must be a JSON schema, a mapping")
    return {"type": "function", **outer, "function": function}


def _read_call(value: Any, what: str, origin: Origin) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise origin.error(f"{what} is {kind_of(value)}", _CALL_HINT)
    outer, function = _split(value, what, origin, _CALL_HINT)
    others = [key for key in function if key not in ("name", "arguments")]
    if others:
        raise origin.error(f"{what} has {list_names(function)}", _CALL_HINT)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = read_json(arguments, f"'arguments' of {what}", origin) if arguments.strip() else {}
    if not isinstance(arguments, Mapping):
        raise origin.error(f"'arguments' of {what} is {kind_of(arguments)}", "it must be a mapping of names to values")
    return {"type": "function", **outer, "function": {**function, "arguments": arguments}}


def _split(value: Mapping[str, Any], what: str, origin: Origin, hint: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What stands beside the function, such as an id, and the function itself; nulls are left out of both."""
    given = {key: item for key, item in value.items() if item is not None}
    kind = given.get("type", "function")
    if kind != "function":
        raise origin.error(f"{what} has the type '{kind}'", "only functions are known", hint)
    if "function" in given:
        inner = given.pop("function")
        if not isinstance(inner, Mapping):
            raise origin.error(f"'function' of {what} is {kind_of(inner)}", hint)
        outer, function = given, {key: item for key, item in inner.items() if item is not None}
    else:
        outer = {key: given[key] for key in ("id", "index") if key in given}
        function = {key: item for key, item in given.items() if key not in ("type", "id", "index")}
    if not isinstance(function.get("name"), str) or not function["name"].strip():
        raise origin.error(f"{what} has no 'name'", hint)
    return outer, function
