"""The life of a tracker in a run: opened before the model loads, let go when it fails, ended with the run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from dumbo.blame import text_in_one_line
from dumbo.errors import DumboError, RunError
from dumbo.metrics import MetricsCollector, RunInfo
from dumbo.redact import redact_text

_HEAD, _TAIL = 250, 150
"""Characters of another library's message that a line of ours repeats: what failed comes first, the reason last."""


@dataclass(frozen=True)
class End:
    """How the run ended."""

    outcome: str
    """`finished`, `interrupted` or `failed`."""
    steps: int | None
    """The last optimizer step that metrics came from; None if there were none."""

    @property
    def left_nothing(self) -> bool:
        """Whether the run ended before anything was measured, so that its record is of no use to anybody."""
        return self.steps is None and self.outcome != "finished"


class TrackerError(RunError):
    """A tracker failed; the message has no secrets in it."""


class Tracker(MetricsCollector):
    """A collector that talks to somebody else's library. Implement `start`, `write`, `finish` and `abandon`.

    Libraries put addresses with passwords into what they raise: it reaches the user through here, without secrets.
    """

    name: ClassVar[str]
    advice: ClassVar[str] = ""
    """What to write where it cannot be opened."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """`say` tells the user a line."""
        self._say = say
        self._open = False
        self._steps: int | None = None

    def start(self, run: RunInfo) -> None:
        """Import the library and open the run there; nothing may be asked on the terminal or wait without end."""
        raise NotImplementedError

    def write(self, metrics: dict[str, float], step: int) -> None:
        """Keep the metrics of a step; raise if they cannot be kept."""
        raise NotImplementedError

    def finish(self, end: End) -> None:
        """The run has ended: keep how, and wait for what is under way, within limits."""
        raise NotImplementedError

    def abandon(self) -> None:
        """Let go of threads, processes and files after a failure; what it raises is not heard."""

    def tell(self, line: str) -> None:
        """Tell the user where the run is kept, without secrets."""
        self._say(f"{self.name}: {redact_text(line)}")

    def open(self, run: RunInfo) -> None:
        """Start; a failure stops the run with one line that says what to write."""
        if run.resumed is not None:
            self._steps = run.step
        try:
            self.start(run)
        except BaseException as error:
            self._let_go()
            if isinstance(error, DumboError) or not isinstance(error, Exception | SystemExit):
                raise
            advice = f"; {self.advice}" if self.advice else ""
            raise TrackerError(f"{self.name}: {in_one_line(error)}{advice}") from error
        self._open = True

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Write, or let go and raise: the run reports it once and goes on without this tracker."""
        if self._open:
            self._steps = max(step, self._steps or 0)
            self._attempt(lambda: self.write(metrics, step))

    def close(self, outcome: str) -> None:
        """Finish; nothing to do for a tracker that was never opened, because one before it could not be."""
        if self._open:
            self._open = False
            self._attempt(lambda: self.finish(End(outcome, self._steps)))

    def _attempt(self, call: Callable[[], None]) -> None:
        try:
            call()
        except (Exception, SystemExit) as error:
            self._open = False
            self._let_go()
            raise TrackerError(in_one_line(error)) from error

    def _let_go(self) -> None:
        with contextlib.suppress(Exception, SystemExit):
            self.abandon()


def in_one_line(error: BaseException) -> str:
    """What was raised, without secrets, on one line of bounded length."""
    text = text_in_one_line(error) or "no message"
    if not isinstance(error, DumboError):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= _HEAD + _TAIL else f"{text[:_HEAD]} ... {text[-_TAIL:]}"
