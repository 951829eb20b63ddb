"""Conversations from rows: the formats `alpaca` and `messages`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from dumbo.data.records import Conversation, Origin, Row
from dumbo.errors import DataError
from dumbo.plugins.jinja_formatter.turns import BESIDE_CONTENT

if TYPE_CHECKING:
    from dumbo.plugins.jinja_formatter.plugin import AlpacaOptions, MessagesOptions

ALPACA_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
"""The prompt of https://github.com/tatsu-lab/stanford_alpaca, with the line end of its published `text` column."""

ALPACA_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)

SHAREGPT_HINT = (
    "this looks like ShareGPT ('from', 'value'); rename them to 'role' and 'content', "
    "and the roles 'human' and 'gpt' to 'user' and 'assistant'"
)


class Alpaca:
    """Makes a conversation of two messages from a row with instruction, input and output."""

    def __init__(self, options: AlpacaOptions) -> None:
        self.instruction = options.field_instruction
        self.input = options.field_input
        self.output = options.field_output
        self.input_is_named = "field_input" in options.model_fields_set
        self.headings = options.prompt == "alpaca"

    def __call__(self, row: Row) -> Conversation:
        """Return the conversation. Raises `DataError` where a column is missing or not text, or the output empty."""
        instruction = _text(row, self.instruction)
        context = self._context(row)
        output = _text(row, self.output)
        if not output.strip():
            raise row.origin.error(f"'{self.output}' is empty", "there is no answer to train on")
        prompt = self._prompt(instruction, context)
        messages = ({"role": "user", "content": prompt}, {"role": "assistant", "content": output})
        return Conversation(messages, row.origin)

    def _context(self, row: Row) -> str:
        """The input; rows may lack it, but a name that the user chose may not be a wrong one."""
        if not _is_present(row, self.input, required=self.input_is_named):
            return ""
        return _text(row, self.input)

    def _prompt(self, instruction: str, context: str) -> str:
        if not self.headings:
            return f"{instruction}\n\n{context}" if context else instruction
        template = ALPACA_WITH_INPUT if context else ALPACA_WITHOUT_INPUT
        return template.format(instruction=instruction, input=context)


class Messages:
    """Makes a conversation from a row with a list of messages."""

    def __init__(self, options: MessagesOptions) -> None:
        self.messages = options.field_messages
        self.tools = options.field_tools
        self.tools_are_named = "field_tools" in options.model_fields_set

    def __call__(self, row: Row) -> Conversation:
        """Return the conversation.

        Raises `DataError` where a column or a part of a message is missing or not text, or the assistant says nothing.
        """
        if self.messages not in row.values:
            raise _missing_column(row, self.messages, _messages_hints(row))
        listed = row.values[self.messages]
        if not isinstance(listed, list | tuple):
            raise row.origin.error(f"'{self.messages}' is {_kind(listed)}", "it must be a list of messages")
        if not listed:
            raise row.origin.error(f"'{self.messages}' is empty", "a conversation has at least one message")
        messages = tuple(_message(value, number, row.origin) for number, value in enumerate(listed, start=1))
        return Conversation(messages, row.origin, self._tools(row))

    def _tools(self, row: Row) -> tuple[Mapping[str, Any], ...]:
        if not _is_present(row, self.tools, required=self.tools_are_named):
            return ()
        tools = row.values[self.tools]
        if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
            raise row.origin.error(f"'{self.tools}' is not a list of JSON schemas", "each tool is a mapping, not text")
        return tuple(tools)


def _message(value: Any, number: int, origin: Origin) -> Mapping[str, Any]:
    """The message, without the nulls that column stores write for keys which other messages have."""
    if not isinstance(value, Mapping):
        raise origin.error(
            f"message {number} is {_kind(value)}", "every message is a mapping with 'role' and 'content'"
        )
    message = {key: item for key, item in value.items() if item is not None}
    for key in ("role", "content"):
        if key not in message:
            has = ", ".join(f"'{name}'" for name in message) or "nothing"
            hint = f"every message needs 'role' and 'content'; this one has {has}"
            raise origin.error(f"message {number} has no '{key}'", hint, *_sharegpt_hints(message))
        if not isinstance(message[key], str):
            raise origin.error(f"'{key}' of message {number} is {_kind(message[key])}", "it must be text")
    if message["role"] == "assistant" and not _says_something(message):
        hint = "there is no answer to train on; only a call of a tool or a thought may stand without an answer"
        raise origin.error(f"'content' of message {number} is empty", hint)
    return message


def _says_something(message: Mapping[str, Any]) -> bool:
    """Whether there is text, or what a template may write in its stead."""
    return bool(message["content"].strip()) or any(message.get(key) for key in BESIDE_CONTENT)


def _messages_hints(row: Row) -> list[str]:
    """Which column holds messages, judged by the first in each; nothing where none seems to."""
    for name, value in row.values.items():
        first = value[0] if isinstance(value, list | tuple) and value else None
        if isinstance(first, Mapping) and ({"role", "content"} <= first.keys() or _sharegpt_hints(first)):
            return [f"write `data_format: {{type: messages, field_messages: {name}}}`", *_sharegpt_hints(first)]
    return []


def _sharegpt_hints(message: Collection[str]) -> list[str]:
    return [SHAREGPT_HINT] if "from" in message and "value" in message else []


def _is_present(row: Row, name: str, *, required: bool) -> bool:
    """Whether an optional column has a value in this row. Raises `DataError` for one that must at least exist."""
    if required:
        return _column(row, name) is not None
    return row.values.get(name) is not None


def _text(row: Row, name: str) -> str:
    value = _column(row, name)
    if not isinstance(value, str):
        raise row.origin.error(f"'{name}' is {_kind(value)}", "it must be text")
    return value


def _column(row: Row, name: str) -> Any:
    if name not in row.values:
        raise _missing_column(row, name)
    return row.values[name]


def _missing_column(row: Row, name: str, better_hints: Sequence[str] = ()) -> DataError:
    """The error for a column that is not there; `better_hints` stand in for a column of a like name."""
    columns = [str(column) for column in row.values]
    near = get_close_matches(name, columns, n=1)
    hints = better_hints or [f"did you mean '{other}'?" for other in near]
    there_are = ", ".join(f"'{column}'" for column in columns) or "no columns"
    return row.origin.error(f"no column '{name}'", *hints, f"the row has {there_are}")


def _kind(value: Any) -> str:
    """What a value is, in the words of JSON."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, str):
        return "text"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, Mapping):
        return "a mapping"
    return "a list" if isinstance(value, list | tuple) else f"a {type(value).__name__}"
