"""Ranges of characters that rows train or leave out: read from `train_detail`, joined, and cut."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dumbo.data.records import CharRange, Origin
from dumbo.data.row_values import kind_of, list_names

_KEYS = ("begin_offset", "end_offset", "train")
_HINT = "each range is {begin_offset: 0, end_offset: 8, train: true}; the end is the last character's number"


def read_details(value: Any, text: str, what: str, origin: Origin) -> tuple[CharRange, ...]:
    """The ranges that a row lists for `text`, in order; it has them with inclusive ends. `what` is the list in errors.

    Raises:
        DataError: a range that is none, lies outside of the text, or shares characters with another.
    """
    if not isinstance(value, list | tuple):
        raise origin.error(f"{what} is {kind_of(value)}", "it must be a list of ranges", _HINT)
    ranges = [_range(item, f"range {number} of {what}", origin) for number, item in enumerate(value, start=1)]
    for number, found in enumerate(ranges, start=1):
        if found.end > len(text):
            message = f"range {number} of {what} ends at {found.end - 1}, and the text has {len(text)} characters"
            raise origin.error(message, "characters are counted from 0, so the last is one less than their number")
    ranges.sort(key=lambda found: found.start)
    for earlier, later in zip(ranges, ranges[1:], strict=False):
        if later.start < earlier.end:
            spans = " and ".join(f"{found.start} to {found.end - 1}" for found in (earlier, later))
            raise origin.error(f"two ranges of {what} overlap: {spans}", _HINT)
    return join_ranges(ranges)


def join_ranges(ranges: Iterable[CharRange]) -> tuple[CharRange, ...]:
    """The same ranges, those that touch and say the same as one, and none that is empty."""
    joined: list[CharRange] = []
    for found in ranges:
        last = joined[-1] if joined else None
        if last and last.end == found.start and last.train == found.train:
            joined[-1] = CharRange(last.start, found.end, found.train)
        elif found.start < found.end:
            joined.append(found)
    return tuple(joined)


def cut_ranges(ranges: tuple[CharRange, ...], start: int, end: int) -> tuple[CharRange, ...]:
    """What `ranges` say of the characters `[start, end)`, counted from `start`.

    Where they say nothing, these are left out, as all characters are that ranges leave out.
    """
    cut = [
        CharRange(max(found.start, start) - start, min(found.end, end) - start, found.train)
        for found in ranges
        if found.start < end and found.end > start
    ]
    return tuple(cut) if cut or not ranges or start == end else (CharRange(0, end - start, train=False),)


def _range(value: Any, what: str, origin: Origin) -> CharRange:
    if not isinstance(value, Mapping):
        raise origin.error(f"{what} is {kind_of(value)}", _HINT)
    item = {key: found for key, found in value.items() if found is not None}
    if set(item) != set(_KEYS):
        raise origin.error(f"{what} has {list_names(item) or 'nothing'}", _HINT)
    start, end, train = (item[key] for key in _KEYS)
    if not _is_whole(start) or not _is_whole(end) or not isinstance(train, bool):
        raise origin.error(f"{what} is not two whole numbers with true or false", _HINT)
    if start < 0 or end < start:
        raise origin.error(f"{what} begins at {start} and ends at {end}", _HINT)
    return CharRange(start, end + 1, train)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
