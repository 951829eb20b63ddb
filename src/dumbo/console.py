"""What a run tells the person in front of it: lines, tables and progress; plain where it is piped."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from dumbo.metrics import MetricsCollector
from dumbo.redact import redact_text
from dumbo.stdio import Outlet, complain
from dumbo.visible import made_visible

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.progress import Progress, TaskID

T = TypeVar("T")

_OFTEN = 64
"""Items between two looks at the clock."""

_PATIENCE = 30.0
"""Seconds between two lines of progress."""


class Console(MetricsCollector):
    """Prints on the first rank, and nothing on the others (`enabled=False`)."""

    def __init__(self, enabled: bool = True, stream: TextIO | None = None, *, goes_on: bool = False) -> None:
        """`stream` is where everything goes; by default standard output at the time of the call. With `goes_on` there
        is work behind it that does not end when the stream breaks: what matters is told on standard error then."""
        self.enabled = enabled
        self._stream: Any = stream or sys.stdout
        self._outlet: Outlet | None = None
        if goes_on:
            self._stream = self._outlet = Outlet(self._stream)
        self._is_told = False
        self._rich: RichConsole | None = None
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._total = 0
        self._started = 0.0
        self._listener: Callable[[Mapping[str, int]], None] | None = None

    def tell(self, listener: Callable[[Mapping[str, int]], None]) -> None:
        """Hand the progress of the training on to `listener`: `steps` and `total_steps`, as they change."""
        self._listener = listener

    @property
    def is_terminal(self) -> bool:
        """Whether a person watches, so that lines may be drawn over."""
        return bool(self._stream.isatty())

    def say(self, text: str) -> None:
        """Print a line, without secrets and control characters; above the progress bar where there is one."""
        if not self.enabled:
            return
        text = made_visible(redact_text(text))
        if not self._has_broken():
            if self.is_terminal:
                self._terminal().print(text, markup=False, highlight=False, soft_wrap=True)
            else:
                print(text, file=self._stream, flush=True)
        if self._has_broken():  # Perhaps just now.
            complain(text)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Print rows under a header, in columns; numbers to the right."""
        texts = [[_cell(value) for value in row] for row in rows]
        widths = [max(len(line[i]) for line in [list(header), *texts]) for i in range(len(header))]
        numeric = [all(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
        for line in [list(header), *texts]:
            cells = [c.rjust(w) if right else c.ljust(w) for c, w, right in zip(line, widths, numeric, strict=True)]
            self.say(("  " + "  ".join(cells)).rstrip())

    def track(self, items: Iterable[T], what: str, total: int, done: int = 0) -> Iterator[T]:
        """The items that are left of `total`, `done` of which are: with a bar that goes when they are all done; in a
        pipe with a line every half minute. Both tell the rate and the time left."""
        if not self.enabled:
            yield from items
            return
        what = made_visible(redact_text(what))
        if self.is_terminal:
            yield from self._track_by_bar(items, what, total, done)
        else:
            yield from self._track_by_lines(items, what, total, done)

    def _track_by_bar(self, items: Iterable[T], what: str, total: int, done: int) -> Iterator[T]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        texts = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
        rate = TextColumn("{task.fields[rate]}")
        with Progress(*texts, rate, TimeRemainingColumn(), console=self._terminal(), transient=True) as progress:
            task = progress.add_task(what, total=total, completed=done, rate="")
            began = time.monotonic()
            for number, item in enumerate(items, 1):
                yield item
                if number % _OFTEN == 0:
                    seconds = time.monotonic() - began
                    speed = f"{number / seconds:,.0f}/s" if seconds > 1 else ""
                    progress.update(task, completed=done + number, rate=speed)

    def _track_by_lines(self, items: Iterable[T], what: str, total: int, done: int) -> Iterator[T]:
        began = said = time.monotonic()
        for number, item in enumerate(items, 1):
            yield item
            if number % _OFTEN == 0 and time.monotonic() - said >= _PATIENCE:
                said = time.monotonic()
                rate = number / (said - began)
                left = clock((total - done - number) / rate)
                self.say(f"{what}: {done + number:,} of {total:,}, {rate:,.0f} per second, {left} left")

    def start_training(self, total_steps: int) -> None:
        """Show progress from now on."""
        self._total, self._started = total_steps, time.monotonic()
        if self._listener is not None:
            self._listener({"total_steps": total_steps})
        if not (self.enabled and self.is_terminal):
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
            console=self._terminal(),
        )
        self._progress.start()
        self._task = self._progress.add_task("training", total=total_steps, rate="", loss="")

    def advance(self, step: int) -> None:
        """`step` optimizer steps are done."""
        if self._listener is not None:
            self._listener({"steps": step})
        if self._progress is not None and self._task is not None:
            rate = step / max(time.monotonic() - self._started, 1e-9)
            self._progress.update(self._task, completed=step, rate=f"{rate:.3g} steps/s")

    def stop_training(self) -> None:
        """Leave the bar as it stands."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = self._task = None

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Show the loss behind the bar; in a pipe, and for evaluations, print a line."""
        if "train/loss" in metrics and self._progress is not None and self._task is not None:
            self._progress.update(self._task, loss=f"loss {metrics['train/loss']:.4g}")
            return
        if self._has_broken():
            return
        self.say("  ".join([f"step {step}/{self._total}", *self._parts(metrics, step)]))

    def close(self, outcome: str) -> None:
        """Take the bar away, however the run ended."""
        self.stop_training()

    def _parts(self, metrics: Mapping[str, float], step: int) -> list[str]:
        shown = {
            "train/loss": "loss {:.4f}",
            "train/learning_rate": "lr {:.3g}",
            "train/grad_norm": "grad {:.3g}",
            "perf/tokens_per_second": "{:.0f} tokens/s",
        }
        parts = [words.format(metrics[path]) for path, words in shown.items() if path in metrics]
        parts += [f"{path} {value:.4g}" for path, value in metrics.items() if path.startswith("eval/")]
        if "train/loss" in metrics and 0 < step < self._total:
            seconds = (time.monotonic() - self._started) / step * (self._total - step)
            parts.append(f"{clock(seconds)} left")
        return parts

    def _has_broken(self) -> bool:
        """Whether the stream broke under work that goes on; the first time somebody is told."""
        if self._outlet is None or self._outlet.failure is None:
            return False
        if not self._is_told:
            self._is_told = True
            self.stop_training()  # Beside a bar, standard error leads to the same stream.
            complain(f"dumbo: standard output cannot be written ({self._outlet.failure}): what matters is told here")
        return True

    def _terminal(self) -> RichConsole:
        if self._rich is None:
            from rich.console import Console as RichConsole

            self._rich = RichConsole(file=self._stream)
        return self._rich


def clock(seconds: float) -> str:
    """Seconds as `0:07`, `12:34` or `1:23:45`."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def printable(text: str) -> str:
    """Somebody else's text with nothing in it that moves a terminal's cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _cell(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
