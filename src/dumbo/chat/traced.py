"""Text that remembers which message each of its characters came from, through what templates do to it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import index
from typing import Any, NamedTuple, SupportsIndex


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """A text of a message as the row has it."""

    message: int
    """From 0; `TOOLS` for the tools' schemas."""
    name: str
    """The key of the message that it stands in, at whatever depth."""
    text: str


TOOLS = -1


class Run(NamedTuple):
    """Characters of a traced text that came from one place, in their order."""

    length: int
    field: Field | None
    """None: written by the template."""
    start: int
    """The first of them in `field.text`; `REWRITTEN` where they stand for it in other characters."""
    block: object | None
    """The `{% generation %}` block that they stand in."""


REWRITTEN = -1


class TracedText(str):
    """A string made of runs. What templates do to strings keeps the runs: joining, slicing, stripping, splitting,
    replacing. All other methods are `str`'s own and return plain text, of which nothing is known: an origin may be
    lost, and is never wrong.
    """

    __slots__ = ("_runs",)
    _runs: tuple[Run, ...]

    def __new__(cls, text: str = "", runs: Iterable[Run] | None = None) -> TracedText:
        """Text with its runs; without them, the template's own."""
        self = str.__new__(cls, text)
        self._runs = (Run(len(text), None, 0, None),) if runs is None else tuple(runs)
        return self

    def __str__(self) -> str:
        """Itself: templates write `str(value)`, and would lose the runs."""
        return self

    def __add__(self, other: str) -> TracedText:
        return join((self, other)) if _is_plain(other) else NotImplemented

    def __radd__(self, other: str) -> TracedText:
        return join((other, self)) if _is_plain(other) else NotImplemented

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            return self._cut(start, max(start, stop)) if step == 1 else str.__getitem__(self, key)
        place = index(key)
        place += len(self) if place < 0 else 0
        if not 0 <= place < len(self):
            raise IndexError("string index out of range")
        return self._cut(place, place + 1)

    def strip(self, chars: str | None = None, /) -> TracedText:
        """As `str.strip`."""
        return self.lstrip(chars).rstrip(chars)

    def lstrip(self, chars: str | None = None, /) -> TracedText:
        """As `str.lstrip`."""
        return self._cut(len(self) - len(str.lstrip(self, chars)), len(self))

    def rstrip(self, chars: str | None = None, /) -> TracedText:
        """As `str.rstrip`."""
        return self._cut(0, len(str.rstrip(self, chars)))

    def removeprefix(self, prefix: str, /) -> TracedText:
        """As `str.removeprefix`."""
        return self._cut(len(prefix) if self.startswith(prefix) else 0, len(self))

    def removesuffix(self, suffix: str, /) -> TracedText:
        """As `str.removesuffix`."""
        return self._cut(0, len(str.removesuffix(self, suffix)))

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """As `str.split`."""
        return self._parts(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        """As `str.rsplit`."""
        return self._parts(str.rsplit(self, sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:
        """As `str.splitlines`."""
        lines = self._parts(str.splitlines(self, True), "")
        if keepends:
            return lines
        return [line[: len(bare)] for line, bare in zip(lines, str.splitlines(self), strict=True)]

    def partition(self, sep: str, /) -> tuple[str, str, str]:
        """As `str.partition`."""
        before, found, after = self._parts(list(str.partition(self, sep)), "")
        return before, found, after

    def rpartition(self, sep: str, /) -> tuple[str, str, str]:
        """As `str.rpartition`."""
        before, found, after = self._parts(list(str.rpartition(self, sep)), "")
        return before, found, after

    def replace(self, old: str, new: str, count: SupportsIndex = -1, /) -> str:
        """As `str.replace`; where `old` is empty, its result is plain text."""
        if not old:
            return str.replace(self, old, new, count)
        return join_with(new, self.split(old, count)) if old in self else self

    def join(self, parts: Iterable[str], /) -> str:
        """As `str.join`."""
        return join_with(self, parts)

    def _cut(self, start: int, stop: int) -> TracedText:
        """Characters `[start, stop)`. Of an empty cut the place is kept: it tells where nothing was left."""
        if start == 0 and stop == len(self):
            return self
        runs: list[Run] = []
        position, json_is_known = 0, False
        for run in self._runs:
            end = position + run.length
            first, last = max(start, position), min(stop, end)
            if run.start == REWRITTEN and not run.length:
                runs += [run] * json_is_known  # It stands for what is in the run before it.
            elif run.start == REWRITTEN:
                is_left = self._has_texts_left(position, first, last, end)
                # Of the schemas of tools it is enough to know that they are there.
                json_is_known = first < last and (is_left or (run.field is not None and run.field.message == TOOLS))
                kept = run if json_is_known else Run(0, None, 0, run.block)
                runs += [kept._replace(length=last - first)] * (first < last)
            elif first < last or (start == stop and position <= start <= end and not runs):
                runs.append(Run(last - first, run.field, run.start + first - position, run.block))
            position = end
        return TracedText(str.__getitem__(self, slice(start, stop)), runs)

    def _has_texts_left(self, start: int, first: int, last: int, end: int) -> bool:
        """Whether the JSON `[start, end)` has all its texts when only `[first, last)` is left: brackets at its ends are
        no part of one, as no quote stands before them."""
        before, after = str.__getitem__(self, slice(start, first)), str.__getitem__(self, slice(last, end))
        return not before.lstrip("{[ \n") and not after.rstrip("}] \n")

    def _parts(self, parts: list[str], separator: str | None) -> list[str]:
        """`parts`, which stand in this text in their order, as cuts of it."""
        cuts: list[str] = []
        position = 0
        for part in parts:
            # Between words is any whitespace, and a word begins without: its first occurrence is the one.
            start = self.find(part, position) if separator is None else position
            cuts.append(self._cut(start, start + len(part)))
            position = start + len(part) + len(separator or "")
        return cuts


def _is_plain(other: Any) -> bool:
    """Whether it is a text that joins as it is; Jinja's `Markup` escapes what it is joined with."""
    return isinstance(other, str) and not hasattr(other, "__html__")


def join(parts: Iterable[str]) -> TracedText:
    """All parts, one after the other."""
    kept = list(parts)
    return TracedText("".join(kept), [run for part in kept for run in runs_of(part)])


def join_with(separator: str, parts: Iterable[str]) -> TracedText:
    """All parts with `separator` between them."""
    joined: list[str] = []
    for part in parts:
        joined += [separator, part] if joined else [part]
    return join(joined)


def runs_of(text: str) -> tuple[Run, ...]:
    """The runs of a text; plain text is the template's own."""
    if type(text) is TracedText:
        return text._runs
    return (Run(len(text), None, 0, None),) if text else ()


def mark_generated(text: str) -> TracedText:
    """The same text, marked as a block of what the model writes."""
    block = object()
    return TracedText(text, [run._replace(block=block) for run in runs_of(text)])


def trace(value: Any, message: int, name: str) -> Any:
    """`value` with each text in it traced, keys of mappings included; what is in `name` under a key or at a place is
    called `name.key`, `name.0`."""
    if isinstance(value, str):
        return TracedText(value, (Run(len(value), Field(message, name, value), 0, None),))
    if isinstance(value, Mapping):
        names = {key: f"{name}.{key}" for key in value}
        return {trace(key, message, names[key]): trace(item, message, names[key]) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [trace(item, message, f"{name}.{place}") for place, item in enumerate(value)]
    return value


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The filter `tojson` of Transformers' chat templates, which does not escape for HTML as Jinja's own does."""
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    traced = list(_runs_within(value))
    fields = [run.field for run in traced if run.field is not None]
    if len({field.message for field in fields}) > 1 or not all(map(_is_whole, traced)):
        return text  # It is not known which character is whose, or what was left out.
    # The whole text is the first one's, and the others are known to be in it.
    lengths = [len(text), *[0] * len(fields)]
    runs = [Run(length, field, REWRITTEN, None) for length, field in zip(lengths, fields, strict=False)]
    return TracedText(text, runs) if runs else text


def _runs_within(value: Any) -> Iterator[Run]:
    """The runs of the traced texts in `value`."""
    if isinstance(value, TracedText):
        yield from value._runs
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _runs_within(key)
            yield from _runs_within(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _runs_within(item)


def _is_whole(run: Run) -> bool:
    """Whether a run has all of its field but whitespace."""
    if run.field is None or run.start == REWRITTEN:
        return True
    text = run.field.text
    return text[run.start : run.start + run.length].strip() == text.strip()
