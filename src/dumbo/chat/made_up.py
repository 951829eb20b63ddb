"""Made-up messages, by which it is found out what a template does."""

from __future__ import annotations

from dumbo.data.records import Message


def question() -> Message:
    """Something of the user's."""
    return {"role": "user", "content": "?"}


def instruction() -> Message:
    """A system message."""
    return {"role": "system", "content": "?"}


def answer() -> Message:
    """Something of the assistant's."""
    return {"role": "assistant", "content": "a"}


def call() -> Message:
    """A call of a tool; its id has the nine characters that some templates insist on."""
    function = {"name": "f", "arguments": {"x": "y"}}
    calls = [{"type": "function", "id": "abcdefghi", "function": function}]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def beginnings() -> list[list[Message]]:
    """What may stand before an answer; some templates insist on a system message, and some know none."""
    return [[question()], [instruction(), question()]]
