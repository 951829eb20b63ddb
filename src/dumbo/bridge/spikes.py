"""Losses that leap: seen by comparing a step's with those of the steps before."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

WINDOW = 50
"""Steps whose losses a step is compared with."""
LEAST = 20
"""The first steps of a run, none of which is a leap: there is nothing to compare them with."""
LIMIT = 3
"""Ways back without `WINDOW` good steps between them that end a run: they lead nowhere."""


class SpikeWatch:
    """Remembers the losses of steps, and tells of one that is too far above them."""

    def __init__(self, factor: float) -> None:
        """Of the last `WINDOW` losses, a leap is more than `factor` times the mean, and further above it than `factor`
        times the usual change: `loss > factor * mean and loss - mean > factor * change`.

        Nine of ten changes from one step to the next are no larger than the usual one. Losses around zero or below it
        are measured by that alone, as their mean says nothing of their size; where it is 0 too, nothing is a leap. It
        is no maximum, so that one odd step among the last does not hide the next.
        """
        self._factor = factor
        self._losses: list[float] = []
        self._since = WINDOW
        self.in_a_row = 0
        """Leaps without `WINDOW` good steps between them."""
        self.count = 0
        """All leaps so far."""

    def judge(self, loss: float) -> str | None:
        """What is wrong with the loss of a step, for people; a good one is remembered."""
        if len(self._losses) >= LEAST:
            mean, change = sum(self._losses) / len(self._losses), self._usual_change()
            has_size = mean > 0 or change > 0
            if has_size and loss > self._factor * mean and loss - mean > self._factor * change:
                self.in_a_row = self.in_a_row + 1 if self._since < WINDOW else 1
                self.count, self._since = self.count + 1, 0
                return f"the loss is {loss:.4g}, {self._how_far(loss, mean, change)} of {len(self._losses)} steps"
        self._losses = [*self._losses, loss][-WINDOW:]
        self._since += 1
        return None

    def _usual_change(self) -> float:
        changes = sorted(abs(after - before) for before, after in pairwise(self._losses))
        return changes[(len(changes) - 1) * 9 // 10]

    @staticmethod
    def _how_far(loss: float, mean: float, change: float) -> str:
        if mean > change:
            return f"{loss / mean:.1f} times the mean"
        return f"{(loss - mean) / change:.1f} times their usual change above the mean ({mean:.4g})"

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"losses": self._losses, "since": self._since, "in_a_row": self.in_a_row, "count": self.count}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._losses, self._since = state["losses"], state["since"]
        self.in_a_row, self.count = state["in_a_row"], state["count"]
