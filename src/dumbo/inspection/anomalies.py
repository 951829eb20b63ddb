"""What is strange about the rows of a source, in words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dumbo.inspection.tally import Found, Tally
from dumbo.output.numerals import count, percent

if TYPE_CHECKING:
    from dumbo.data.sources import Source
    from dumbo.errors import Problem

_FEW = 0.01
"""Share of rows without a trained token from which a source is strange."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why rows cannot be used: one message for all in which no more than numbers differ."""

    rows: int
    first: Problem

    def __str__(self) -> str:
        where = f" (the first: {self.first.place})" if self.first.place else ""
        return f"{count(self.rows)} × {self.first.message}{where}"


@dataclass(frozen=True, slots=True)
class Anomaly:
    """Something to look into before a run."""

    source: str
    message: str
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.source}: {self.message}"


def group_reasons(problems: Iterable[Problem]) -> list[Reason]:
    """The reasons of bad rows, the most frequent first."""
    groups: dict[str, list[Problem]] = {}
    for problem in problems:
        groups.setdefault(re.sub(r"\d+", "0", problem.message), []).append(problem)
    return sorted((Reason(len(group), group[0]) for group in groups.values()), key=lambda reason: -reason.rows)


def bad_row_anomalies(source: Source) -> list[Anomaly]:
    """The bad rows of a source, where it has some, with their reasons."""
    if not source.bad.count:
        return []
    problems, total = source.bad.problems, source.bad.count
    some = f" (reasons of the first {count(len(problems))})" if len(problems) < total else ""
    message = f"{rows(total)} that cannot be used{some}"
    return [Anomaly(source.label, message, tuple(str(reason) for reason in group_reasons(problems)))]


def find_anomalies(source: Source, tally: Tally, warnings: Sequence[str]) -> list[Anomaly]:
    """What is strange about the rows of a source that can be used, and what its train format warns of."""
    found = [Anomaly(source.label, warning) for warning in warnings]
    return [*found, *(Anomaly(source.label, message) for message in _messages(tally))]


def _messages(tally: Tally) -> Iterator[str]:
    untrained = tally.untrained.count / max(tally.rows, 1)
    if untrained > _FEW:
        yield _said(tally.untrained, f"without a trained token, {percent(untrained)} of all")
    if tally.doubled_start.count:
        yield _said(tally.doubled_start, "with two start tokens: both the template and the format write one")
    if tally.open_ended.count:
        words = "whose last trained token is no end token: the model does not learn to stop there"
        yield _said(tally.open_ended, words)
    if tally.too_long.count:
        words = "longer than trainer.data.sequence_length or the model allows: trainer.data.too_long says what to do"
        yield _said(tally.too_long, words)


def _said(found: Found, what: str) -> str:
    where = f" (the first: {found.first.source}:{found.first.row})" if found.first else ""
    return f"{rows(found.count)} {what}{where}"


def rows(number: int) -> str:
    """`1 row`, `1,234 rows`."""
    return f"{count(number)} row{'s' if number != 1 else ''}"
