"""Whether a template writes all that a message says."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from dumbo.chat.rendering import REASONING, REASONING_KEYS, TOOL_CALLS, Piece
from dumbo.chat.traced import REWRITTEN
from dumbo.data.masking import Span
from dumbo.data.records import Message

CONTENT = "content"

THOUGHT_TAG = re.compile(r"</?(?:think|reasoning)>")
_THOUGHT = re.compile(r"<(think|reasoning)>.*?</\1>|\A.*?</(?:think|reasoning)>", re.DOTALL)
"""A thought within `content`; the tag that opens it may belong to the generation prompt."""


def left_out_of(message: Message, pieces: Sequence[Piece]) -> tuple[str, bool]:
    """What the template leaves out, and whether it is nothing but a thought of the assistant's: many leave it out in
    all turns but the last."""
    hides_thought = False
    is_assistant = message["role"] == "assistant"
    calls: Any = message.get(TOOL_CALLS) or ()
    names = {piece.field.name for piece in pieces}
    if not all(_is_written(call, f"{TOOL_CALLS}.{place}", names) for place, call in enumerate(calls)):
        return "a call of a tool", False
    for name, text in _said(message):
        ours = [piece for piece in pieces if piece.field.name == name]
        gaps = list(_gaps(text, ours))
        if is_assistant:
            gaps = [gap for gap in gaps if THOUGHT_TAG.sub("", text[slice(*gap)]).strip()]
        if not gaps:
            continue
        thoughts = [match.span() for match in _THOUGHT.finditer(text)] if is_assistant and name == CONTENT else []
        in_thoughts = all(any(t[0] <= gap[0] and gap[1] <= t[1] for t in thoughts) for gap in gaps)
        if not in_thoughts and not (is_assistant and name == REASONING and not ours):
            return "what it thinks" if name == REASONING else f"its {name}", False
        hides_thought = True
    return "what it thinks" if hides_thought else "", hides_thought


def _said(message: Message) -> Iterator[tuple[str, str]]:
    """The texts of a message that the template has to write, by name."""
    if isinstance(message.get(CONTENT), str):
        yield CONTENT, message[CONTENT]
    thought = next((message[key] for key in REASONING_KEYS if message.get(key) is not None), None)
    if isinstance(thought, str):
        yield REASONING, thought


def _is_written(call: Any, name: str, names: Collection[str]) -> bool:
    """Whether a call of a tool is written, with each of its arguments: as a whole, or by its name or its value."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return any(other == name or other.startswith(f"{name}.") for other in names)
    arguments = function.get("arguments")
    wanted = {f"{name}.function.name"} if "name" in function else set()
    if isinstance(arguments, Mapping) and f"{name}.function.arguments" not in names:
        wanted |= {f"{name}.function.arguments.{key}" for key in arguments}
    return all(any(other == part or other.startswith(f"{part}.") for other in names) for part in wanted)


def _gaps(text: str, pieces: Sequence[Piece]) -> Iterator[Span]:
    """Characters of `text` that no piece has, without the whitespace around them."""
    if any(piece.offset == REWRITTEN for piece in pieces):
        return
    written = sorted((piece.offset, piece.offset + piece.end - piece.start) for piece in pieces)
    position = 0
    for start, end in [*written, (len(text), len(text))]:
        gap = text[position:start]
        if gap and not gap.isspace():
            first = position + len(gap) - len(gap.lstrip())
            yield first, first + len(gap.strip())
        position = max(position, end)
