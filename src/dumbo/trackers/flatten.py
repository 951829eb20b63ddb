"""A configuration as flat keys (`trainer.arguments.batch_size`), which is what trackers compare runs by."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

Flat = str | int | float | bool | None | list[Any]


def flatten(tree: Mapping[str, Any]) -> dict[str, Flat]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`. Lists of plain values stay lists; those that hold more get positions as keys.

    Empty mappings stay as the text `{}`, so that no key is lost. Two keys that would become one (`a.b` written as one
    key beside `a: {b: ...}`) are told apart by a number.
    """
    return _told_apart(_leaves(None, tree))


def renamed(flat: Mapping[str, Flat], rename: Callable[[str], str]) -> dict[str, Flat]:
    """`flat` with keys as `rename` makes them, for a store that takes few characters; none is lost."""
    return _told_apart((rename(key), value) for key, value in flat.items())


def as_text(value: Flat) -> str:
    """A value for a store that holds only texts: as JSON has it, and texts as they are."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _told_apart(pairs: Iterable[tuple[str, Flat]]) -> dict[str, Flat]:
    apart: dict[str, Flat] = {}
    for key, value in pairs:
        name, number = key, 1
        while name in apart:
            number += 1
            name = f"{key}_{number}"
        apart[name] = value
    return apart


def _leaves(key: str | None, value: Any) -> Iterator[tuple[str, Flat]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _leaves(str(name) if key is None else f"{key}.{name}", item)
        if not value and key is not None:
            yield key, "{}"
    elif key is None:
        raise TypeError("a configuration is a mapping")
    elif isinstance(value, list | tuple):
        if any(isinstance(item, Mapping | list | tuple) for item in value):
            for position, item in enumerate(value):
                yield from _leaves(f"{key}.{position}", item)
        else:
            yield key, list(value)
    else:
        yield key, value if isinstance(value, str | int | float | bool | None) else str(value)
