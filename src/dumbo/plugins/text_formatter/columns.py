"""Columns that must have something in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dumbo.data.json_text import read_json
from dumbo.data.records import Row
from dumbo.data.row_values import kind_of, read_column, read_text


def take_text(row: Row, name: str) -> str:
    """Return the text in a column. Raises `DataError` where there is none, or nothing but whitespace."""
    value = read_text(row, name)
    if not value.strip():
        raise row.origin.error(f"'{name}' is {'only whitespace' if value else 'empty'}", "it must have some text")
    return value


def take_list(row: Row, name: str, items: str) -> Sequence[Any]:
    """Return the list in a column, which may be written as JSON text; `items` are what it must have, for messages.

    Raises `DataError` where there is no list, or an empty one.
    """
    value = read_column(row, name)
    if isinstance(value, str):
        value = read_json(value, f"'{name}', which must be a list of {items},", row.origin)
    if not isinstance(value, list | tuple):
        raise row.origin.error(f"'{name}' is {kind_of(value)}", f"it must be a list of {items}")
    if not value:
        raise row.origin.error(f"'{name}' is empty", f"it must be a list of {items}")
    return value
