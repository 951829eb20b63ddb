"""SIGTERM as an error like others, so that a run closes what it has open."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from dumbo.errors import Terminated


@contextmanager
def raising_on_termination() -> Iterator[None]:
    """Inside, SIGTERM raises `Terminated`; while steps are made, the trainer has a handler of its own. Only a process's
    main thread can catch signals: in another nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise(signum: int, frame: FrameType | None) -> None:
    raise Terminated("stopped by SIGTERM between steps\n    the same command with --resume goes on")
