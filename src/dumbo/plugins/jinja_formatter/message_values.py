"""What the keys of one message hold: its role, its texts, its calls, and what they say of the training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dumbo.data.records import CharRange, Origin
from dumbo.data.row_values import kind_of, list_names
from dumbo.errors import DataError
from dumbo.plugins.jinja_formatter.char_ranges import cut_ranges, read_details
from dumbo.plugins.jinja_formatter.message_text import TRAIN_KEYS, read_flag, read_parts
from dumbo.plugins.jinja_formatter.tool_calls import read_calls

REASONING = "reasoning_content"
REASONING_KEYS = (REASONING, "reasoning", "thinking")
"""Names under which messages have the thoughts of an assistant; templates are given the first."""

_CALL_KEYS = ("tool_calls", "function_call")
_DETAIL, _REASONING_DETAIL = "train_detail", "reasoning_train_detail"
FLAG_KEYS = (_DETAIL, _REASONING_DETAIL, *TRAIN_KEYS)
"""Keys that say what is trained."""
READ_KEYS = frozenset({"role", "content", _DETAIL, _REASONING_DETAIL, *_CALL_KEYS, *REASONING_KEYS, *TRAIN_KEYS})
"""Keys that are read here; the others go to the template as they are."""


@dataclass(frozen=True, slots=True)
class MarkedText:
    """A text of a message, and what the row says of its characters."""

    text: str
    ranges: tuple[CharRange, ...] = ()

    def cut(self, start: int, end: int) -> MarkedText:
        """The characters `[start, end)`, with what is said of them."""
        return MarkedText(self.text[start:end], cut_ranges(self.ranges, start, end))


def is_sharegpt(message: Mapping[str, Any]) -> bool:
    """Whether a message has the keys of ShareGPT, and none of those that chat templates read."""
    return {"from", "value"} <= message.keys() and message.get("role") is None and message.get("content") is None


class MessageValues:
    """One message of a row, its keys named as they are read here, without nulls."""

    def __init__(self, message: Mapping[str, Any], mappings: Mapping[str, str], number: int, origin: Origin) -> None:
        self.message = message
        self.written = {key: item for key, item in message.items() if item is not None}
        self.names = {**({"role": "from", "content": "value"} if is_sharegpt(message) else {}), **mappings}
        renamed = {key: self.written[name] for key, name in self.names.items() if name in self.written}
        taken = {*renamed, *(self.names[key] for key in renamed)}
        kept = {key: item for key, item in self.written.items() if key not in taken}
        self.given = {**renamed, **kept}
        self.what = f"message {number}"
        self.origin = origin

    def error(self, fault: str, *hints: str) -> DataError:
        """The error for this message; `fault` goes on where its number ends."""
        return self.origin.error(f"{self.what} {fault}", *hints)

    @property
    def others(self) -> dict[str, Any]:
        """The keys that nothing here reads."""
        return {key: item for key, item in self.given.items() if key not in READ_KEYS}

    def role(self) -> str:
        """The role as the row has it."""
        role = self.given.get("role")
        if role is None:
            raise self._missing("role")
        if not isinstance(role, str):
            raise self.origin.error(f"'role' of {self.what} is {kind_of(role)}", "it must be text")
        return role

    def content(self, *, may_lack: bool) -> MarkedText:
        """The text, whole or in parts; an empty one where it is not there and `may_lack`."""
        content = self.given.get("content")
        if content is None and not may_lack:
            raise self._missing("content")
        return self._marked("" if content is None else content, "content", _DETAIL)

    def reasoning(self) -> MarkedText | None:
        """The thoughts, under whichever name they are."""
        found = {
            key: self._marked(self.given[key], key, _REASONING_DETAIL) for key in REASONING_KEYS if key in self.given
        }
        if len({marked.text for marked in found.values()}) > 1:
            raise self.error(f"has different thoughts in {list_names(found)}", "keep one of them")
        if not found and self.given.get(_REASONING_DETAIL):
            raise self.error(f"has '{_REASONING_DETAIL}' and no '{REASONING}'")
        return next(iter(found.values()), None)

    def calls(self) -> list[Mapping[str, Any]]:
        """The calls of tools that stand beside the content."""
        found = [key for key in _CALL_KEYS if self.given.get(key)]
        if len(found) > 1:
            raise self.error(f"has {list_names(found)}", "keep one of them")
        return read_calls(self.given[found[0]], f"'{found[0]}' of {self.what}", self.origin) if found else []

    def calls_in_content(self) -> list[Mapping[str, Any]]:
        """The calls that the content is, in messages whose role says so."""
        content = self.given.get("content")
        if content is None:
            raise self._missing("content")
        if self.calls():
            raise self.error(f"has the role '{self.role()}' and {list_names(_CALL_KEYS[:1])}", "keep one of them")
        return read_calls(content, f"'content' of {self.what}", self.origin)

    def train(self) -> bool | None:
        """Whether the message as a whole is trained, where it says so."""
        return read_flag(self.given, self.what, self.origin)

    def _marked(self, value: Any, key: str, detail_key: str) -> MarkedText:
        what = f"'{key}' of {self.what}"
        text, ranges = read_parts(value, what, self.origin)
        details = self.given.get(detail_key)
        if details in (None, [], ()):
            return MarkedText(text, ranges)
        if not isinstance(value, str):
            raise self.error(f"has '{detail_key}' and its '{key}' in parts", "write 'train' into the parts instead")
        return MarkedText(text, read_details(details, text, f"'{detail_key}' of {self.what}", self.origin))

    def _missing(self, key: str) -> DataError:
        has = list_names(self.written) or "nothing"
        hints = [f"every message needs 'role' and 'content'; this one has {has}"]
        if key in self.message:
            return self.error(f"has null as its '{key}'", "write text, or leave the message out")
        if key not in self.names:
            hints.append(f"a key of another name is written so: message_property_mappings: {{{key}: its_name}}")
        return self.error(f"has no '{self.names.get(key, key)}'", *hints)
