"""Signals to a run that makes no steps: SIGTERM is an error like others, so that it closes what it has open."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from dumbo.errors import Terminated

Handler = Callable[[int, FrameType | None], None]


@contextmanager
def raising_on_termination() -> Iterator[None]:
    """Inside, SIGTERM raises `Terminated`, and SIGUSR1, which would end the process, asks for nothing; while steps are
    made, the trainer has handlers of its own. Only a process's main thread can catch signals: in another nothing
    changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers: dict[int, Handler] = {signal.SIGTERM: _raise}
    if hasattr(signal, "SIGUSR1"):  # not on Windows
        handlers[signal.SIGUSR1] = _pass_over
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _pass_over(signum: int, frame: FrameType | None) -> None:
    """There is nothing yet, or nothing more, to write a checkpoint of."""


def _raise(signum: int, frame: FrameType | None) -> None:
    raise Terminated("stopped by SIGTERM between steps\n    the same command with --resume goes on")
