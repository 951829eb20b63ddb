"""JSON text to Python values, exactly: what JSON does not allow, or Python would quietly change, is refused."""

from __future__ import annotations

import json
import math
import re
from typing import Any

_HALF_CHARACTER = re.compile(r"\\u[dD][89a-fA-F]")


class InexactJson(ValueError):
    """Text that `json` would accept although the value is not what the file says."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in values if keys.count(key) > 1)
        raise InexactJson(f"the key '{twice}' appears twice in one object")
    return values


def _number(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise InexactJson(f"the number {text[:20]} is too large for a float")
    return value


def _constant(text: str) -> float:
    raise InexactJson(f"{text} is not a JSON value; write null")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_number, parse_constant=_constant)


def decode_json(text: str, start: int = 0) -> tuple[Any, int]:
    """The value that begins at `text[start]`, and where it ends.

    Raises `json.JSONDecodeError` for text that is not JSON, or ends too early, and `InexactJson` for keys that appear
    twice, NaN and infinity, halves of surrogate pairs, numbers of thousands of digits, nesting beyond Python's limit.
    """
    try:
        value, end = _DECODER.raw_decode(text, start)
        if "\\" in text and _HALF_CHARACTER.search(text, start, end):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (json.JSONDecodeError, InexactJson):
        raise
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise InexactJson(f"a text holds {half}, half of a character") from error
    except RecursionError as error:
        raise InexactJson("nested too deeply") from error
    except ValueError as error:
        raise InexactJson("a number has too many digits") from error
    return value, end


def kind_of(value: Any) -> str:
    """What `value` is called in JSON, with its article."""
    if value is None:
        return "null"
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean"}
    return names.get(type(value), "a number")


def said(error: json.JSONDecodeError) -> str:
    """What `json` found wrong, as part of a sentence."""
    return f"not valid JSON: {error.msg[0].lower()}{error.msg[1:]}"
