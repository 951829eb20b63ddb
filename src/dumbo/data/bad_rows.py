"""Rows that cannot be used: counted, and the first of them kept for messages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dumbo.errors import DataError, Place, Problem

_MOST = 1000
"""Bad rows that are kept for messages. Where they are errors, reading stops there: they are enough to see a pattern."""


@dataclass
class BadRows:
    """The bad rows of a source."""

    stops_early: bool
    """Whether they are errors, so that there is no point in finding all of them."""
    count: int = 0
    problems: list[Problem] = field(default_factory=list)
    """Of the first of them."""

    @property
    def are_enough(self) -> bool:
        """Whether there are so many that the other rows need not be looked at."""
        return self.stops_early and self.count >= _MOST

    def note(self, error: DataError) -> None:
        """Count the rows of an error."""
        self.add(len(error.problems), error.problems)

    def add(self, count: int, problems: Sequence[Problem]) -> None:
        """Count several, some of which come with their problems."""
        self.count += count
        self.problems += problems[: _MOST - len(self.problems)]

    def as_facts(self) -> dict[str, Any]:
        """What JSON can hold of them."""
        written = [
            [problem.message, problem.hints, *((problem.place.file, problem.place.line) if problem.place else ("", 0))]
            for problem in self.problems
        ]
        return {"bad": self.count, "problems": written}

    def add_facts(self, facts: Mapping[str, Any]) -> None:
        """Count those that were written by `as_facts`."""
        problems = [
            Problem(message, place=Place(file, line) if file else None, hints=tuple(hints))
            for message, hints, file, line in facts.get("problems", ())
        ]
        self.add(facts.get("bad", 0), problems)
