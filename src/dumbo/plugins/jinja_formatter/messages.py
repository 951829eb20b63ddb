"""Conversations from rows with a list of messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dumbo.data.json_text import read_json
from dumbo.data.records import SILENT, Conversation, Message, Row
from dumbo.data.row_values import (
    is_present,
    kind_of,
    missing_column,
    near_name_hints,
    read_optional_text,
)
from dumbo.errors import DataError
from dumbo.plugins.jinja_formatter.message_reading import MessageReader, is_message
from dumbo.plugins.jinja_formatter.tool_calls import read_tools

if TYPE_CHECKING:
    from dumbo.plugins.jinja_formatter.data_options import MessagesOptions

USUAL_NAME = "conversations"
"""What the column of messages is called in most data sets that do not call it `messages`."""

SYSTEM_ROLES = ("system", "developer")


class Messages:
    """Makes a conversation from a row with a list of messages."""

    def __init__(self, options: MessagesOptions) -> None:
        self.messages = options.field_messages
        self.messages_are_named = "field_messages" in options.model_fields_set
        self.tools = options.field_tools
        self.tools_are_named = "field_tools" in options.model_fields_set
        self.drops_system = options.drop_system_message
        self.system = None if self.drops_system else options.field_system
        self.system_is_named = "field_system" in options.model_fields_set
        self.reader = MessageReader(options)

    def __call__(self, row: Row) -> Conversation:
        """Return the conversation.

        Raises `DataError` where a column or a part of a message is missing or not text, or the assistant says nothing.
        """
        messages, training = self.reader.read(self._listed(row), row.origin)
        if self.drops_system:
            kept = [index for index, message in enumerate(messages) if message["role"] != "system"]
            messages, training = [messages[index] for index in kept], [training[index] for index in kept]
            if not messages:
                raise row.origin.error("no message is left", "all are of the role 'system', and drop_system_message")
        system = self._system(row, messages)
        if system:
            messages, training = [{"role": "system", "content": system}, *messages], [SILENT, *training]
        told = tuple(training) if any(told is not SILENT and told != SILENT for told in training) else ()
        return Conversation(tuple(messages), row.origin, self._tools(row), told)

    def _listed(self, row: Row) -> list[Any] | tuple[Any, ...]:
        """The messages as the row has them."""
        name = self.messages
        if name not in row.values:
            name = self._other_column(row)
        listed = row.values[name]
        if isinstance(listed, str):
            if not listed.lstrip().startswith("["):
                raise row.origin.error(f"'{name}' is text", "it must be a list of messages, or the text of a JSON list")
            listed = read_json(listed, f"'{name}'", row.origin)
        if not isinstance(listed, list | tuple):
            raise row.origin.error(f"'{name}' is {kind_of(listed)}", "it must be a list of messages")
        if not listed:
            raise row.origin.error(f"'{name}' is empty", "a conversation has at least one message")
        if all(isinstance(item, list | tuple) for item in listed):
            raise row.origin.error(f"'{name}' is a list of lists", "a row is one conversation: a list of messages")
        return listed

    def _other_column(self, row: Row) -> str:
        """The column to read where there is none of the default's name: the usual one, if no other holds messages."""
        holding = [str(name) for name, value in row.values.items() if _holds_messages(value)]
        if holding == [USUAL_NAME] and not self.messages_are_named:
            return USUAL_NAME
        raise self._no_messages(row, holding)

    def _no_messages(self, row: Row, holding: list[str]) -> DataError:
        if holding:
            hint = f"write `data_format: {{type: messages, field_messages: {holding[0]}}}`"
            return missing_column(row, self.messages, [hint])
        lists = {name: value[0] for name, value in row.values.items() if isinstance(value, list | tuple) and value}
        nested = [name for name, first in lists.items() if _holds_messages(first)]
        hints = [f"'{name}' holds lists of messages; a row is one conversation, so take them apart" for name in nested]
        hints = hints[:1] or near_name_hints(self.messages, row.values)
        return missing_column(row, self.messages, hints or ["rows without messages have the formats alpaca or columns"])

    def _system(self, row: Row, messages: list[Message]) -> str:
        """The system message of a column of its own."""
        if self.system is None:
            return ""
        text = read_optional_text(row, self.system, required=self.system_is_named)
        first = messages[0]
        if not text.strip() or first["role"] not in SYSTEM_ROLES:
            return text if text.strip() else ""
        if text.strip() != first["content"].strip():
            message = f"the column '{self.system}' and message 1 say different things to the assistant"
            raise row.origin.error(message, "write field_system: null to go by the messages alone")
        return ""

    def _tools(self, row: Row) -> tuple[Mapping[str, Any], ...]:
        if not is_present(row, self.tools, required=self.tools_are_named):
            return ()
        return read_tools(row.values[self.tools], f"'{self.tools}'", row.origin)


def _holds_messages(value: Any) -> bool:
    """Whether a column's value seems to be a conversation, judged by its first message."""
    return isinstance(value, list | tuple) and bool(value) and is_message(value[0])
