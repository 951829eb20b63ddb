"""The text of a message, whole or in parts, with what its parts say of the training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dumbo.data.records import CharRange, Origin
from dumbo.data.row_values import kind_of, list_names
from dumbo.plugins.jinja_formatter.char_ranges import join_ranges

TRAIN_KEYS = ("train", "training", "weight")
_TEXT_KEYS = ("text", "content", "value")
_PART_HINT = "each part is {type: text, text: ...}, perhaps with 'train' or 'weight'"


def read_parts(value: Any, what: str, origin: Origin) -> tuple[str, tuple[CharRange, ...]]:
    """The text that `value` is, or that its parts make together; and a range for each part where one has a flag.

    Raises:
        DataError: something that is not text, a part that cannot be read.
    """
    if isinstance(value, str):
        return value, ()
    if not isinstance(value, list | tuple):
        raise origin.error(f"{what} is {kind_of(value)}", "it must be text, or a list of parts with text")
    pieces = [_read_part(item, f"part {number} of {what}", origin) for number, item in enumerate(value, start=1)]
    text, ranges = "", []
    for piece, train in pieces:
        ranges.append(CharRange(len(text), len(text) + len(piece), train))
        text += piece
    return text, join_ranges(ranges) if any(train is not None for _, train in pieces) else ()


def read_flag(mapping: Mapping[str, Any], what: str, origin: Origin) -> bool | None:
    """Whether a message or part says that it is trained; None where it says nothing.

    Raises:
        DataError: a flag that is neither true or false nor 1 or 0, or two that disagree.
    """
    flags: dict[str, bool] = {}
    for key in TRAIN_KEYS:
        value = mapping.get(key)
        if value is None:
            continue
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            shown = f"{value}" if isinstance(value, int | float) else kind_of(value)
            hint = "it must be true or false, or 1 or 0; rename the key if it means something else"
            raise origin.error(f"'{key}' of {what} is {shown}", hint)
        flags[key] = bool(value)
    if len(set(flags.values())) > 1:
        raise origin.error(f"{list_names(flags)} of {what} disagree", "one of them is enough")
    return next(iter(flags.values()), None)


def _read_part(value: Any, what: str, origin: Origin) -> tuple[str, bool | None]:
    if not isinstance(value, Mapping):
        raise origin.error(f"{what} is {kind_of(value)}", _PART_HINT)
    part = {key: item for key, item in value.items() if item not in (None, [], {})}
    kind = part.pop("type", "text")
    if kind != "text":
        raise origin.error(f"{what} has the type '{kind}'", "only text can be trained on")
    texts = [key for key in _TEXT_KEYS if key in part]
    unknown = [key for key in part if key not in (*_TEXT_KEYS, *TRAIN_KEYS)]
    if len(texts) != 1 or unknown:
        raise origin.error(f"{what} has {list_names(part) or 'no text'}", _PART_HINT)
    text = part[texts[0]]
    if not isinstance(text, str):
        raise origin.error(f"'{texts[0]}' of {what} is {kind_of(text)}", "it must be text")
    return text, read_flag(part, what, origin)
