"""JSON inside of texts, as columns and tool calls often hold it."""

from __future__ import annotations

import json
from typing import Any

from dumbo.data.records import Origin


def read_json(text: str, what: str, origin: Origin) -> Any:
    """The value that `text` writes; `what` is its name in errors.

    Raises:
        DataError: it is not JSON, or Python would quietly read something else: a key twice, NaN, half a character.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError as error:
        found = f"{error.msg[0].lower()}{error.msg[1:]}"
        message = f"{what} is text that is not valid JSON: {found} at character {error.pos + 1}"
        raise origin.error(message, f"it goes wrong at: {_around(text, error.pos)}") from None
    except UnicodeEncodeError:
        raise origin.error(f"{what} is JSON with half of a character (\\ud800 to \\udfff alone)") from None
    except RecursionError:
        raise origin.error(f"{what} is JSON that is nested too deeply") from None
    except ValueError as error:
        raise origin.error(f"{what} is text that is not valid JSON: {error}") from None
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key '{next(key for key in values if keys.count(key) > 1)}' appears twice in one object")
    return values


def _constant(text: str) -> float:
    raise ValueError(f"{text} is not a JSON value; write null")


def _around(text: str, position: int) -> str:
    """The text from a few characters before `position`, on one line."""
    start = max(position - 15, 0)
    piece = " ".join(text[start : position + 25].split())
    return f"{'...' if start else ''}{piece}{'...' if position + 25 < len(text) else ''}" or "its beginning"
