"""Ends a run whose step hangs, and leaves what every thread was doing."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from dumbo.errors import DumboError, RunError
from dumbo.stdio import complain

GRACE = 10.0
"""Seconds that the main thread has to leave the step by itself, once it was told to."""

_LAST_WORDS = 5.0
"""Seconds for what is told and written before the process ends."""

_WAKE = getattr(signal, "SIGUSR2", None)
"""The signal that reaches a main thread which waits in a system call; Windows has none."""


class Watchdog:
    """A thread that looks whether a step takes too long; time is monotonic, so that a clock that is set does not count.

    A step that takes longer than `limit` seconds is raised out of as a `RunError`, in the main thread; where something
    in the step catches that and goes on, it is raised again at the step's end. If the step has not ended `grace`
    seconds later (it waits in a library that returns for no signal), the process exits with code 2.
    """

    def __init__(
        self,
        limit: float,
        report: str,
        folder: Path,
        grace: float = GRACE,
        before_exit: Callable[[str], None] = lambda message: None,
    ) -> None:
        """`report` is the name of the file in `folder` that the stacks go to, with `{step}` for the step's number.
        `before_exit` is called, in another thread, with the message of a process that ends where it stands."""
        self._limit, self._report, self._folder, self._grace = limit, report, folder, grace
        self._before_exit = before_exit
        self._running: tuple[int, float] | None = None
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._failure: RunError | None = None
        self._previous: Any = None

    def start(self) -> None:
        """Look from now on. Called in the main thread, its error is raised there."""
        is_free = _WAKE is not None and signal.getsignal(_WAKE) is signal.SIG_DFL
        if is_free and threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(_WAKE, self._raise)  # type: ignore[arg-type]
        threading.Thread(target=self._watch, name="dumbo-watchdog", daemon=True).start()

    def begin(self, step: int) -> None:
        """The step of this number begins; as `pause` for the one before."""
        self.pause()
        self._running = (step, time.monotonic())

    def pause(self) -> None:
        """What runs now is no step, and may take as long as it wants.

        Raises:
            RunError: the step that ended with this took too long, and has caught what was raised in it.
        """
        with self._lock:
            self._running = None
        if self._failure is not None:
            raise self._failure

    def close(self) -> None:
        """Stop looking."""
        with self._lock:  # No signal is sent after that, which would end the process.
            self._ended.set()
        if self._previous is not None:
            signal.signal(_WAKE, self._previous)  # type: ignore[arg-type]
            self._previous = None

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._limit / 4)):
            hung = self._find_hung()
            if hung is not None:
                self._leave(hung)
                return

    def _find_hung(self) -> tuple[int, float] | None:
        """The step that takes too long, if there is one; that is raised in the main thread."""
        with self._lock:
            running = self._running
            if self._ended.is_set() or running is None or time.monotonic() - running[1] <= self._limit:
                return None
            where = self._write_stacks(running[0])
            message = f"step {running[0]} took longer than {self._limit:g} seconds: the run hangs\n    {where}"
            self._failure = RunError(f"{message}\n    if steps may take so long, set trainer.faults.step_timeout")
            if self._previous is None:
                self._grace = 0.0
            else:
                signal.pthread_kill(threading.main_thread().ident or 0, _WAKE)  # type: ignore[arg-type]
            return running

    def _leave(self, hung: tuple[int, float]) -> None:
        """End the process if the step `hung` still runs at the end of the time of grace."""
        until = time.monotonic() + self._grace
        while self._running is hung and time.monotonic() < until:
            if self._ended.wait(min(0.1, self._grace)):
                return
        with self._lock:
            if self._running is not hung or self._ended.is_set():
                return
            # In a thread, as what hangs may be the disk or the terminal.
            last = threading.Thread(target=self._say_last, daemon=True)
            last.start()
            last.join(_LAST_WORDS)
            os._exit(DumboError.exit_code)

    def _say_last(self) -> None:
        message = str(self._failure)
        with contextlib.suppress(Exception):  # The message counts, whatever this meets in a run that hangs.
            self._before_exit(message)
        complain(message)
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()

    def _write_stacks(self, step: int) -> str:
        """Write what the threads do to the file and the error stream; return where it stands."""
        file = self._folder / self._report.format(step=f"{step:06}")
        try:
            with file.open("w", encoding="utf-8") as stream:
                faulthandler.dump_traceback(stream, all_threads=True)
            stacks = file.read_text(encoding="utf-8")
        except OSError as error:
            with os.fdopen(os.dup(2), "w") as stream:
                faulthandler.dump_traceback(stream, all_threads=True)
            return f"what every thread was doing stands above ({file} cannot be written: {error.strerror or error})"
        complain(stacks)
        return f"what every thread was doing is in {file}"

    def _raise(self, signum: int, frame: FrameType | None) -> None:
        if self._failure is not None and self._running is not None and not self._ended.is_set():
            raise self._failure
