"""Ends a run whose step hangs, and leaves what every thread was doing."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from dumbo.errors import DumboError, RunError

GRACE = 10.0
"""Seconds that the main thread has to leave the step by itself, once it was told to."""

_WAKE = getattr(signal, "SIGUSR2", None)
"""The signal that reaches a main thread which waits in a system call; Windows has none."""


class Watchdog:
    """A thread that looks whether a step takes too long; time is monotonic, so that a clock that is set does not count.

    A step that takes longer than `limit` seconds is raised out of as a `RunError`, in the main thread. Where that does
    not end it within `grace` seconds (it waits in a library that returns for no signal), the process exits with code 2.
    """

    def __init__(self, limit: float, report: str, folder: Path, grace: float = GRACE) -> None:
        """`report` is the name of the file in `folder` that the stacks go to, with `{step}` for the step's number."""
        self._limit, self._report, self._folder, self._grace = limit, report, folder, grace
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
        """The step of this number begins."""
        self._running = (step, time.monotonic())

    def pause(self) -> None:
        """What runs now is no step, and may take as long as it wants."""
        self._running = None

    def close(self) -> None:
        """Stop looking."""
        with self._lock:  # No signal is sent after that, which would end the process.
            self._ended.set()
        if self._previous is not None:
            signal.signal(_WAKE, self._previous)  # type: ignore[arg-type]
            self._previous = None

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self._limit / 4)):
            running = self._running
            if running is not None and time.monotonic() - running[1] > self._limit:
                self._end(running[0])
                return

    def _end(self, step: int) -> None:
        where = self._write_stacks(step)
        message = f"step {step} took longer than {self._limit:g} seconds: the run hangs\n    {where}"
        self._failure = RunError(f"{message}\n    if steps may take so long, set trainer.faults.step_timeout")
        with self._lock:
            if self._ended.is_set():
                return
            if self._previous is not None:
                signal.pthread_kill(threading.main_thread().ident or 0, _WAKE)  # type: ignore[arg-type]
        if self._previous is None or not self._ended.wait(self._grace):
            print(str(self._failure), file=sys.stderr, flush=True)
            sys.stdout.flush()
            os._exit(DumboError.exit_code)

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
        print(stacks, file=sys.stderr, flush=True)
        return f"what every thread was doing is in {file}"

    def _raise(self, signum: int, frame: FrameType | None) -> None:
        if self._failure is not None and not self._ended.is_set():
            raise self._failure
