"""Read a JSON document value by value, never holding more of it than one value, and always knowing line and column."""

from __future__ import annotations

import codecs
import json
import re
from typing import Any, BinaryIO

from dumbo.errors import DataError
from dumbo.plugins.polars.data_files import DataFile
from dumbo.plugins.polars.json_values import InexactJson, decode_json, kind_of, said
from dumbo.plugins.polars.text_files import not_utf8, place_error

_CHUNK = 1 << 16
_SPACE = re.compile(r"[ \t\r\n]*")
# Where the decoder stops at most, counted from the end of text that was cut off: no token but a text is longer
# without a part of it being a token itself ("-Infinity" has 9 characters, "\ud83d\ude00" has 12).
_LONGEST_TOKEN = 16


class JsonScanner:
    """A position in a JSON document that moves over one value or one sign at a time."""

    def __init__(self, stream: BinaryIO, file: DataFile) -> None:
        """Start at the first character of `stream`; `file` is for messages."""
        self.file = file
        self.line = 1
        self._column = 1
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._at = 0

    def peek(self) -> str:
        """Skip white space and return the next character, or '' at the end of the file."""
        while True:
            space = _SPACE.match(self._text, self._at)
            if space:
                self._move_to(space.end())
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read_more():
                return ""

    def take(self, signs: str, wanted: str) -> str:
        """Move over the next character, which must be one of `signs`, and return it; `wanted` names them."""
        found = self.peek()
        if not found:
            raise self._error(self._at, f"not valid JSON: the file ends where {wanted} should be", "was it cut off?")
        if found not in signs:
            raise self._error(self._at, f"not valid JSON: expected {wanted}")
        self._move_to(self._at + 1)
        return found

    def decode(self) -> Any:
        """Move over the value that begins here and return it. Raises `DataError` with its place."""
        self.peek()
        while True:
            try:
                value, end = decode_json(self._text, self._at)
            except json.JSONDecodeError as error:
                passed = error.pos - self._at
                if self._may_be_cut_off(error) and self._read_more():
                    continue
                stopped = self._at + passed  # reading moves the text, even where there is no more
                hints = ("the file ends here: was it cut off?",) if stopped >= len(self._text.rstrip()) else ()
                raise self._error(stopped, said(error), *hints) from error
            except InexactJson as error:
                raise self._error(self._at, str(error)) from error
            # A number at the end of what was read may go on; other values have an end of their own.
            if end == len(self._text) and self._text[end - 1] not in '}]"' and self._read_more():
                continue
            self._move_to(end)
            return value

    def decode_object(self) -> dict[str, Any]:
        """Move over the object that begins here and return it. Raises `DataError` for any other value."""
        self.peek()
        line, column = self.line, self._column
        value = self.decode()
        if not isinstance(value, dict):
            raise place_error(self.file, line, column, f"expected an object, got {kind_of(value)}")
        return value

    def _read_more(self) -> bool:
        # As much again as there is: a value is tried anew after each step, which stays linear in its length.
        raw = self._stream.read(max(_CHUNK, len(self._text) - self._at))
        try:
            text = self._decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            passed = self._text[self._at :].count("\n") + error.object[: error.start].count(b"\n")
            raise place_error(self.file, self.line + passed, 0, not_utf8(error), "save the file as UTF-8") from error
        self._text = self._text[self._at :] + text
        self._at = 0
        return bool(raw)

    def _may_be_cut_off(self, error: json.JSONDecodeError) -> bool:
        return error.msg.startswith("Unterminated string") or error.pos + _LONGEST_TOKEN >= len(self._text)

    def _move_to(self, end: int) -> None:
        self.line, self._column = self._place(end)
        self._at = end

    def _place(self, end: int) -> tuple[int, int]:
        lines = self._text.count("\n", self._at, end)
        if not lines:
            return self.line, self._column + end - self._at
        return self.line + lines, end - self._text.rfind("\n", self._at, end)

    def _error(self, at: int, message: str, *hints: str) -> DataError:
        return place_error(self.file, *self._place(at), message, *hints)
