"""Standard output and error that break: whoever read them has gone, or their disk is full."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO

_GONE = (OSError, ValueError)
"""What a stream raises that cannot be written; a closed one `ValueError`."""


class Outlet:
    """A stream for work that must not end with it: once it cannot be written, what comes is lost and nothing raises."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: str | None = None
        """Why it cannot be written, once that is so."""

    @property
    def encoding(self) -> str:
        """As the stream's."""
        return self._stream.encoding

    def fileno(self) -> int:
        """As the stream's."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """Whether a person watches."""
        return self.failure is None and self._stream.isatty()

    def write(self, text: str) -> int:
        """Write `text`, or lose it."""
        if self.failure is None:
            try:
                self._stream.write(text)
            except _GONE as error:
                self._fail(error)
        return len(text)

    def flush(self) -> None:
        """Write what the stream has kept back, or lose it."""
        if self.failure is None:
            try:
                self._stream.flush()
            except _GONE as error:
                self._fail(error)

    def _fail(self, error: Exception) -> None:
        if isinstance(error, UnicodeError):  # The text is at fault, and not the stream.
            raise error
        self.failure = getattr(error, "strerror", None) or str(error)
        lead_nowhere(self._stream)


def complain(text: str) -> None:
    """Print a line to standard error; where that cannot be written either, it is lost."""
    with contextlib.suppress(*_GONE):
        print(text, file=sys.stderr, flush=True)


def open_closed_streams() -> None:
    """Where the process was started without standard output or error, what is printed there is lost."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, PTH123 (it stays open)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123


def let_go_of_errors() -> None:
    """Lose what standard error cannot write: Python would try again at its end, and give an exit code of its own."""
    try:
        sys.stderr.flush()
    except _GONE:
        lead_nowhere(sys.stderr)


def lead_nowhere(stream: TextIO) -> None:
    """From now on all that goes to the file behind `stream` is lost, whoever writes it, and what it has kept back."""
    with contextlib.suppress(*_GONE):  # A stream without a file has nothing that Python would write at its end.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)
