"""Single messages as chat templates take them, from the shapes that data sets have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from dumbo.data.records import SILENT, Message, MessageTraining, Origin
from dumbo.data.row_values import kind_of, list_names
from dumbo.plugins.jinja_formatter.message_values import (
    FLAG_KEYS,
    READ_KEYS,
    REASONING,
    MarkedText,
    MessageValues,
    is_sharegpt,
)
from dumbo.plugins.jinja_formatter.roles import RoleNames
from dumbo.plugins.jinja_formatter.thinking import UnsplitThinkingError, split_thinking

if TYPE_CHECKING:
    from dumbo.plugins.jinja_formatter.data_options import MessagesOptions

_NOTHING_SAID = "there is no answer to train on; only a call of a tool or a thought may stand without an answer"


def is_message(value: Any) -> bool:
    """Whether this seems to be a message, judged by its keys."""
    return isinstance(value, Mapping) and ({"role", "content"} <= value.keys() or is_sharegpt(value))


class MessageReader:
    """Makes messages for templates of the messages of a row."""

    def __init__(self, options: MessagesOptions) -> None:
        self.mappings = dict(options.message_property_mappings)
        self.roles = RoleNames(options.roles)
        self.splits_thinking = options.split_thinking

    def read(self, listed: Sequence[Any], origin: Origin) -> tuple[list[Message], list[MessageTraining]]:
        """The messages, and what each says of its training.

        Raises:
            DataError: a message that lacks something, holds what is not text, or contradicts itself.
        """
        plain = self._read_plain(listed)
        if plain is not None:
            return plain, [SILENT] * len(plain)
        for number, value in enumerate(listed, start=1):
            if not isinstance(value, Mapping):
                hint = "every message is a mapping with 'role' and 'content'"
                raise origin.error(f"message {number} is {kind_of(value)}", hint)
            _check_flags(value, number, origin)
        self._check_mappings(listed, origin)
        messages = [MessageValues(value, self.mappings, number, origin) for number, value in enumerate(listed, start=1)]
        pairs = [self._read(message) for message in messages]
        return [message for message, _ in pairs], [training for _, training in pairs]

    def _read_plain(self, listed: Sequence[Any]) -> list[Message] | None:
        """The messages, if each has nothing but a known role and a text, as nearly all have: in a fifth of the time.

        None: they must be looked at more closely.
        """
        if self.mappings:
            return None
        messages: list[Message] = []
        for value in listed:
            if type(value) is not dict or len(value) != 2:
                return None
            role, text = value.get("role"), value.get("content")
            if role is None and text is None:
                role, text = value.get("from"), value.get("value")
            if type(role) is not str or type(text) is not str or role not in self.roles.targets:
                return None
            role = self.roles.targets[role]
            if role == "assistant" and (self.splits_thinking or not text or text.isspace()):
                return None
            messages.append({"role": role, "content": text})
        return messages

    def _check_mappings(self, listed: Sequence[Mapping[str, Any]], origin: Origin) -> None:
        """Report a name under `message_property_mappings` that no message has. Only role and content must be there;
        of the others, a name that is missing is wrong where the messages have one like it."""
        keys = dict.fromkeys(str(key) for message in listed for key in message)
        for target, source in self.mappings.items():
            if source in keys:
                continue
            required = target in ("role", "content")
            free = [key for key in keys if key not in READ_KEYS and key not in self.mappings.values()]
            near = get_close_matches(source, free, n=1, cutoff=0.6 if required else 0.8)
            if required or near:
                hint = f"did you mean '{near[0]}'?" if near else f"the messages have {list_names(keys)}"
                raise origin.error(f"no message has '{source}', from which '{target}' is to be taken", hint)

    def _read(self, values: MessageValues) -> tuple[Message, MessageTraining]:
        written, reasoning = values.role(), values.reasoning()
        if self.roles.is_call(written):
            role, calls, content = "assistant", values.calls_in_content(), MarkedText("")
        else:
            role, calls = self.roles.read(written, values), values.calls()
            if calls and role != "assistant":
                raise values.error(f"calls a tool and has the role '{role}'", "only an assistant calls tools")
            content = values.content(may_lack=role == "assistant" and bool(calls or _says(reasoning)))
        if self.splits_thinking and role == "assistant":
            content, reasoning = _split(content, reasoning, values)
        train = values.train()
        if role == "assistant" and train is not False and not (_says(content) or calls or _says(reasoning)):
            raise values.origin.error(f"'content' of {values.what} is empty", _NOTHING_SAID)
        message: dict[str, Any] = {"role": role, "content": content.text}
        if reasoning is not None:
            message[REASONING] = reasoning.text
        if calls:
            message["tool_calls"] = calls
        told = MessageTraining(train, content.ranges, reasoning.ranges if reasoning else ())
        return {**message, **values.others}, told


def _check_flags(message: Mapping[str, Any], number: int, origin: Origin) -> None:
    """Report a key that is nearly one of those which say what is trained: it would do nothing."""
    for key in message.keys() - READ_KEYS:
        near = get_close_matches(str(key), FLAG_KEYS, n=1, cutoff=0.8)
        if near:
            hint = f"did you mean '{near[0]}'? rename the key otherwise"
            raise origin.error(f"message {number} has '{key}', which says nothing of its training", hint)


def _says(marked: MarkedText | None) -> bool:
    return marked is not None and bool(marked.text.strip())


def _split(
    content: MarkedText, reasoning: MarkedText | None, values: MessageValues
) -> tuple[MarkedText, MarkedText | None]:
    """The answer and its thoughts, each with what the row says of its characters."""
    try:
        found = split_thinking(content.text)
    except UnsplitThinkingError as error:
        hint = "split_thinking takes thoughts from the beginning of an answer"
        raise values.origin.error(f"'content' of {values.what} {error}", hint) from None
    if found is None:
        return content, reasoning
    if _says(reasoning):
        raise values.error(f"has thoughts in 'content' and beside it, as '{REASONING}'", "keep one of them")
    thoughts = content.cut(*found.thoughts)
    return content.cut(*found.answer), thoughts if thoughts.text else None
