"""Losses that leap: seen by comparing a step's with those of the steps before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WINDOW = 50
"""Steps whose mean loss a step is compared with."""
LEAST = 20
"""Steps before which nothing is a leap: there is nothing to compare with."""
LIMIT = 3
"""Ways back without `WINDOW` good steps between them that end a run: they lead nowhere."""


class SpikeWatch:
    """Remembers the losses of steps, and tells of one that is too far above them."""

    def __init__(self, factor: float) -> None:
        """A loss of more than `factor` times the mean of the last `WINDOW` is a leap."""
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
            mean = sum(self._losses) / len(self._losses)
            if loss > self._factor * mean:
                self.in_a_row = self.in_a_row + 1 if self._since < WINDOW else 1
                self.count, self._since = self.count + 1, 0
                return f"the loss is {loss:.4g}, {loss / mean:.1f} times the mean of {len(self._losses)} steps"
        self._losses = [*self._losses, loss][-WINDOW:]
        self._since += 1
        return None

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"losses": self._losses, "since": self._since, "in_a_row": self.in_a_row, "count": self.count}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._losses, self._since = state["losses"], state["since"]
        self.in_a_row, self.count = state["in_a_row"], state["count"]
