"""The next item of an iterator made in a thread while the one before is used."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from queue import SimpleQueue
from typing import Generic, TypeVar

T = TypeVar("T")

_PATIENCE = 5.0
"""Seconds to wait at the end for a thread that is in the middle of an item."""


class Ahead(Generic[T]):
    """Yields what `items` does, and raises what it raises; one item is made ahead and no more, as they may be large."""

    def __init__(self, items: Generator[T]) -> None:
        """The thread starts with the first item that is asked for."""
        self._items = items
        self._made: SimpleQueue[tuple[T, None] | tuple[None, BaseException]] = SimpleQueue()
        self._wanted = threading.Semaphore(1)
        self._started = self._closed = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._make, name="dumbo-stream", daemon=True)

    def __iter__(self) -> Ahead[T]:
        return self

    def __next__(self) -> T:
        if self._error is not None:
            raise self._error
        if not self._started:
            self._started = True
            self._thread.start()
        item, self._error = self._made.get()
        if self._error is not None:
            raise self._error
        self._wanted.release()
        return item  # type: ignore[return-value]

    def close(self) -> None:
        """End the thread; nothing can be asked for afterwards."""
        self._closed = True
        self._error = self._error or StopIteration()
        self._wanted.release()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE)

    def _make(self) -> None:
        with contextlib.closing(self._items):
            while self._wanted.acquire() and not self._closed:
                try:
                    item = next(self._items)
                except BaseException as error:
                    self._made.put((None, error))
                    return
                self._made.put((item, None))
