"""Parts of splits, written as the library Datasets has them: `train[:10%]`, `[100:200]`, several joined by `+`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

_NAME = re.compile(r"\w[\w.-]*")
_BOUND = re.compile(r"(?P<number>-?\d[\d_]*)(?P<percent>%?)")
_SPACE = re.compile(r"\s*")
_EXAMPLES = "write for example train, train[:10%], [100:200] or train[-500:]+test"


class SliceMistake(ValueError):
    """What is wrong with a text that should say which rows to read."""

    def __init__(self, message: str, *hints: str) -> None:
        """`hints` say what to write instead, a line each."""
        super().__init__(message)
        self.message = message
        self.hints = hints


@dataclass(frozen=True)
class SplitSlice:
    """Rows of one split: from `start` up to and without `stop`, both counted from the end where they are negative."""

    name: str
    """The split; empty: what is read where no split is written."""
    start: int | None = None
    stop: int | None = None
    is_percent: bool = False
    """Whether `start` and `stop` are percent of the rows."""

    @property
    def is_whole(self) -> bool:
        """Whether it is the split with all of its rows."""
        return self.start is None and self.stop is None

    @property
    def needs_count(self) -> bool:
        """Whether it takes the number of rows to know which these are."""
        return self.is_percent or (self.start or 0) < 0 or (self.stop or 0) < 0

    def bounds(self, num_rows: int) -> tuple[int, int]:
        """The first of the rows and the one behind the last, counted from 0, in a split of `num_rows`.

        As Datasets does it by default: percent are rounded to the closest row (`round(percent * num_rows / 100)`), and
        what lies outside of the split is cut off.
        """
        start = self._row(self.start, num_rows, 0)
        return start, max(start, self._row(self.stop, num_rows, num_rows))

    def _row(self, bound: int | None, num_rows: int, default: int) -> int:
        if bound is None:
            return default
        row = round(bound * num_rows / 100) if self.is_percent else bound
        return min(max(num_rows + row, 0) if row < 0 else row, num_rows)

    def __str__(self) -> str:
        if self.is_whole:
            return self.name
        sign = "%" if self.is_percent else ""
        start, stop = ("" if bound is None else f"{bound}{sign}" for bound in (self.start, self.stop))
        return f"{self.name}[{start}:{stop}]"


def parse_split(text: str) -> tuple[SplitSlice, ...]:
    """The parts that `text` asks for, in its order.

    Raises:
        SliceMistake: it cannot be read, with the character where that shows; or it asks for no rows whatever they are.
    """
    return _Parser(text).parse()


def refuse_list(value: Any) -> Any:
    """`value`. Raises `ValueError` with what to write for the list that YAML makes of `[5:7]` without quotes."""
    if isinstance(value, list):
        raise ValueError(f"expected a text, got a list: write it in quotes, '[{', '.join(map(str, value))}]'")
    return value


def empty_slice(part: SplitSlice, num_rows: int, owner: str) -> SliceMistake:
    """The error for a part without rows of `owner`, which has `num_rows` in this split."""
    there_are = "there is 1 row" if num_rows == 1 else f"there are {num_rows} rows"
    return SliceMistake(f"'{part}' is empty: {there_are} in {owner}")


class _Parser:
    """A position in the text that moves over one sign at a time."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def parse(self) -> tuple[SplitSlice, ...]:
        parts = [self._part()]
        while self._next():
            self._take("+", "'+' or the end")
            parts.append(self._part())
        return tuple(parts)

    def _part(self) -> SplitSlice:
        self._next()
        began = self._at
        found = _NAME.match(self._text, began)
        name = found[0] if found else ""
        self._at += len(name)
        if self._next() != "[":
            if not name:
                raise self._error("a split or '['")
            return SplitSlice(name)
        self._take("[", "'['")
        start, start_unit = self._bound()
        self._take(":", "':'")
        stop, stop_unit = self._bound()
        self._take("]", "']'")
        if start_unit and stop_unit and start_unit != stop_unit and start and stop:
            hint = f"write both in percent or both in rows; {_EXAMPLES}"
            raise self._mistake(began, "has one bound in percent and one in rows", hint)
        is_percent = "%" in (start_unit, stop_unit)
        if is_percent and any(abs(bound) > 100 for bound in (start, stop) if bound is not None):
            raise self._mistake(began, "has more than 100 %", _EXAMPLES)
        part = SplitSlice(name, start, stop, is_percent)
        if _is_never_filled(part):
            raise self._mistake(began, "is empty whatever the rows are: it ends where it begins, or before", _EXAMPLES)
        return part

    def _bound(self) -> tuple[int | None, str]:
        """A bound and its unit, `%` or `rows`; None and no unit where there is none."""
        self._next()
        found = _BOUND.match(self._text, self._at)
        if found is None:
            return None, ""
        self._at = found.end()
        return int(found["number"].replace("_", "")), found["percent"] or "rows"

    def _next(self) -> str:
        """The next character behind white space, or '' at the end."""
        found = _SPACE.match(self._text, self._at)
        self._at = found.end() if found else self._at
        return self._text[self._at : self._at + 1]

    def _take(self, sign: str, wanted: str) -> None:
        if self._next() != sign:
            raise self._error(wanted)
        self._at += 1

    def _error(self, wanted: str) -> SliceMistake:
        found = f"'{self._text[self._at]}'" if self._at < len(self._text) else "the end"
        message = f"'{self._text}' cannot be read: {wanted} is missing at character {self._at + 1}, where {found} is"
        hints = ["percent and rows are whole numbers"] if found == "'.'" and "[" in self._text else []
        return SliceMistake(message, *hints, _EXAMPLES)

    def _mistake(self, began: int, message: str, *hints: str) -> SliceMistake:
        return SliceMistake(f"'{self._text[began : self._at].strip()}' at character {began + 1} {message}", *hints)


def _is_never_filled(part: SplitSlice) -> bool:
    """Whether both bounds count from the same end, and in the wrong order."""
    if part.is_whole:
        return False
    start, stop = part.start or 0, part.stop
    if stop is None:
        return part.is_percent and start == 100
    return (start < 0) == (stop < 0) and start >= stop
