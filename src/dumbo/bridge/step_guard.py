"""Keeps steps that are not finite away from the optimizer, and ends a run that has nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MethodType
from typing import Any

from torch.optim import Optimizer

from dumbo.errors import TrainingStopped


class StepGuard:
    """Judges every step before its update; the update of a bad one is left out, and nothing of it stays."""

    def __init__(self, limit: int | None, say: Callable[[str], None]) -> None:
        """`limit` bad steps in a row end the run; None never does."""
        self._limit, self._say = limit, say
        self.skipped = 0
        """Bad steps so far."""
        self.in_a_row = 0
        """Bad steps since the last good one."""
        self.skips = False
        """Whether the update of this step is left out."""
        self._undo: Callable[[], None] = lambda: None

    def protect(self, optimizer: Optimizer) -> None:
        """From now on `optimizer` does nothing in a step that was judged bad; `release` ends that."""
        update = optimizer.step

        def step(itself: Optimizer, *positional: Any, **named: Any) -> Any:
            return None if self.skips else update(*positional, **named)

        def undo() -> None:
            optimizer.step = update  # type: ignore[method-assign]

        self.release()
        self._undo = undo
        # A method, as the schedules of PyTorch look for the function behind it.
        optimizer.step = MethodType(step, optimizer)  # type: ignore[method-assign]

    def release(self) -> None:
        """Leave the optimizer as it was."""
        self._undo()
        self._undo = lambda: None

    def leave_out(self) -> None:
        """The update of this step is not made, for another reason than a bad number."""
        self.skips = True

    def state(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load(self, state: Mapping[str, int]) -> None:
        """Go on from what `state` returned."""
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]

    def judge(self, step: int, fault: str | None) -> bool:
        """Note that `step` may be made, or what is wrong with it; return whether the run cannot go on."""
        self.skips = fault is not None
        if fault is None:
            self.in_a_row = 0
            return False
        self.skipped += 1
        self.in_a_row += 1
        if self._limit is not None and self.in_a_row >= self._limit:
            return True
        if self.in_a_row == 1:
            self._say(f"step {step} is skipped: {fault}")
        return False


def bad_step_error(step: int, fault: str, in_a_row: int, where: str) -> TrainingStopped:
    """What ends a run of bad steps; `where` says where the rows of the last one are."""
    row = f", for the {ordinal(in_a_row)} step in a row" if in_a_row > 1 else ""
    return TrainingStopped(
        f"step {step}: {fault}{row}\n    {where}\n"
        "    try a lower learning_rate, more warmup_steps, bf16 for fp16; or mend the rows\n"
        "    how many may come in a row says trainer.faults.bad_steps"
    )


def ordinal(number: int) -> str:
    """`1st`, `12th`, `23rd`."""
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"
