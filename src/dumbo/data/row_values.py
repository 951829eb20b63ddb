"""Values of a row by column name, and the errors for those that are missing or of another kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from dumbo.data.records import Row
from dumbo.errors import DataError


def read_column(row: Row, name: str) -> Any:
    """The value in the column `name`, perhaps None. Raises `DataError` where there is no such column."""
    if name not in row.values:
        raise missing_column(row, name)
    return row.values[name]


def read_text(row: Row, name: str) -> str:
    """The text in the column `name`. Raises `DataError` for anything else."""
    value = read_column(row, name)
    if not isinstance(value, str):
        raise row.origin.error(f"'{name}' is {kind_of(value)}", "it must be text")
    return value


def read_optional_text(row: Row, name: str, *, required: bool) -> str:
    """The text in a column that rows may leave empty, or lack unless it is `required`: a name that the user wrote."""
    return read_text(row, name) if is_present(row, name, required=required) else ""


def is_present(row: Row, name: str, *, required: bool) -> bool:
    """Whether an optional column has a value in this row. Raises `DataError` for one that must at least exist."""
    if required:
        return read_column(row, name) is not None
    return row.values.get(name) is not None


def missing_column(row: Row, name: str, better_hints: Sequence[str] = ()) -> DataError:
    """The error for a column that is not there; `better_hints` stand in for a column of a like name."""
    hints = better_hints or near_name_hints(name, row.values)
    return row.origin.error(f"no column '{name}'", *hints, f"the row has {list_names(row.values) or 'no columns'}")


def near_name_hints(name: str, known: Iterable[Any]) -> list[str]:
    """The nearest of the known names as a hint; nothing where none is near."""
    lowered = {str(other).lower(): str(other) for other in known}
    return [f"did you mean '{lowered[near]}'?" for near in get_close_matches(name.lower(), lowered, n=1)]


def list_names(names: Iterable[Any]) -> str:
    """`'role', 'content'`."""
    return ", ".join(f"'{name}'" for name in names)


def kind_of(value: Any) -> str:
    """What a value is, in the words of JSON."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, str):
        return "text"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else f"a {type(value).__name__}"
