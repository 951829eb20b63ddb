"""Leave secrets out of what plugins and libraries say through `logging`, `warnings` and the errors of their threads."""

from __future__ import annotations

import linecache
import logging
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, TextIO

from dumbo.redact import redactor

Clean = Callable[[str], str]


@contextmanager
def redacting_logs() -> Iterator[None]:
    """Whoever logs, warns, or lets a thread die of an error meanwhile does so without secrets, in any thread.

    What has none is left as it is. Records are cleaned as they are made: no handler sees the secret, whoever has set it
    up, before or later.
    """
    clean = redactor()
    with ExitStack() as stack:
        for install in (_clean_records, _clean_warnings, _clean_threads):
            stack.enter_context(install(clean))
        yield


@contextmanager
def _clean_records(clean: Clean) -> Iterator[None]:
    make = logging.getLogRecordFactory()

    def make_clean(*positional: Any, **named: Any) -> logging.LogRecord:
        record = make(*positional, **named)
        with suppress(Exception):  # Something in it cannot be made a text: its handlers have a way to say so.
            _clean_record(record, clean)
        return record

    logging.setLogRecordFactory(make_clean)
    try:
        yield
    finally:
        if logging.getLogRecordFactory() is make_clean:
            logging.setLogRecordFactory(make)


def _clean_record(record: logging.LogRecord, clean: Clean) -> None:
    try:
        said = record.getMessage()
    except Exception:  # The arguments do not fit the message: a handler would print both.
        said = f"{record.msg} {record.args}"
    if clean(said) != said:
        record.msg, record.args = clean(said), ()
    if record.stack_info:
        record.stack_info = clean(record.stack_info)
    if record.exc_info:
        text = logging.Formatter().formatException(record.exc_info)
        if clean(text) != text:
            # Formatters print this text, and some handlers would make their own of the error itself.
            record.exc_text, record.exc_info = clean(text), None


@contextmanager
def _clean_warnings(clean: Clean) -> Iterator[None]:
    show = warnings.showwarning

    def show_clean(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        said = str(message)
        code = linecache.getline(filename, lineno) if line is None else line
        if clean(said) == said and clean(code) == code:
            show(message, category, filename, lineno, file, line)
        else:
            show(clean(said), category, filename, lineno, file, clean(code))

    warnings.showwarning = show_clean
    try:
        yield
    finally:
        if warnings.showwarning is show_clean:
            warnings.showwarning = show


@contextmanager
def _clean_threads(clean: Clean) -> Iterator[None]:
    tell = threading.excepthook

    def tell_clean(died: threading.ExceptHookArgs) -> None:
        text = "".join(traceback.format_exception(died.exc_type, died.exc_value, died.exc_traceback))
        if clean(text) == text:
            tell(died)
        else:
            name = died.thread.name if died.thread is not None else ""
            print(f"Exception in thread {name}:\n{clean(text)}", end="", file=sys.stderr)

    threading.excepthook = tell_clean
    try:
        yield
    finally:
        if threading.excepthook is tell_clean:
            threading.excepthook = tell
