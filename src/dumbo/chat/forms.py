"""Conversations that differ in their texts alone: what is written around the texts, and what is trained, found once."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from dumbo.chat.completeness import CONTENT
from dumbo.chat.unseen import Outline
from dumbo.data.masking import Span
from dumbo.data.records import Conversation, MessageTraining, Origin, Record
from dumbo.errors import DataError

if TYPE_CHECKING:
    from dumbo.chat.formatter import Prepared

_MOST_MESSAGES = 50_000
"""Of all kinds of conversations that are kept; where they are reached it begins anew: some 30 MB."""
_THOUGHT_MARKS = frozenset({"think>", "reasoning>"})
"""How every tag of a thought ends: of a content that has one, it is often not only the content that matters."""
_THOUGHT = "<think>thought</think>text"
_MADE_UP = Origin("a made-up conversation", 1)

_Flags = tuple[bool | None, ...]
_Kind = tuple[tuple[str, ...], _Flags]
_Place = tuple[int, int, int, int]
"""Where a span begins and ends: a part, and how many characters behind its beginning, twice."""


class Filled(NamedTuple):
    """A conversation by its form. All places are characters of its text."""

    text: str
    spans: list[Span]
    """What is trained, in order and apart from each other."""
    contents: list[Span]
    """Where contents of messages stand, in order."""
    counts: Mapping[str, int]
    form: Form


@dataclass(frozen=True, eq=False)
class Form:
    """What is written and trained of conversations with the same roles."""

    parts: tuple[str, ...]
    """What the template writes, with an empty text where a content goes."""
    holes: tuple[tuple[int, int, bool, bool], ...]
    """For each content that is written: its place in `parts`, its message, and whether whitespace is stripped left and
    right."""
    spans: tuple[_Place, ...]
    """What is trained."""
    counts: Mapping[str, int]
    lacks: tuple[str, ...]
    no_left: str
    no_right: str

    def fill(self, contents: Sequence[str]) -> Filled | None:
        """The conversation with these contents; None where they are such that it may be written in another way."""
        joined = "\n".join(contents)
        for text in self.lacks:
            if text in joined:
                return None
        if self.no_left and any(content[0] in self.no_left for content in contents):
            return None
        if self.no_right and any(content[-1] in self.no_right for content in contents):
            return None
        parts = list(self.parts)
        for place, message, left, right in self.holes:
            content = contents[message]
            if left:
                content = content.lstrip()
            parts[place] = content.rstrip() if right else content
        starts = list(accumulate(map(len, parts), initial=0))
        spans = [(starts[first] + begin, starts[last] + end) for first, begin, last, end in self.spans]
        bounds = [(starts[hole[0]], starts[hole[0] + 1]) for hole in self.holes]
        return Filled("".join(parts), spans, bounds, self.counts, self)


class Forms:
    """The forms of the conversations that were met."""

    def __init__(
        self, outline: Callable[[Sequence[str]], Outline | None], prepare: Callable[[Record], Prepared]
    ) -> None:
        """`outline` says what is written for messages of some roles; `prepare` finds what is trained, the long way."""
        self._outline, self._prepare = outline, prepare
        self._known: dict[_Kind, Form | None] = {}
        self._met: set[_Kind] = set()
        self._num_messages = 0

    def fill(self, record: Record) -> Filled | None:
        """The conversation by its form; None where it has none, and everything about it has to be found out."""
        read = _read(record)
        if read is None:
            return None
        roles, flags, contents = read
        key = roles, flags
        if key in self._known:
            form = self._known[key]
            return form.fill(contents) if form is not None else None
        if key in self._met:  # Of roles that come but once a form would be of no use.
            self._known[key] = self._make(roles, flags)
        else:
            self._meet(key)
        return None

    def _meet(self, kind: _Kind) -> None:
        """Remember it: of the next conversation of this kind the form is made."""
        if self._num_messages >= _MOST_MESSAGES:
            self._met.clear()
            self._known.clear()
            self._num_messages = 0
        self._met.add(kind)
        self._num_messages += len(kind[0])

    def _make(self, roles: tuple[str, ...], flags: _Flags) -> Form | None:
        """The form of conversations with these roles, found with made-up ones. Contents with thoughts have the same
        where the template treats them as any text: then all of them is written, whatever their tags are."""
        outline = self._outline(roles)
        if outline is None:
            return None
        plain = self._made_up(outline, roles, flags, "text")
        if plain is None:
            return None
        spans, counts = plain
        minds_thoughts = any(text in _THOUGHT for text in outline.lacks)
        minds_thoughts = minds_thoughts or self._made_up(outline, roles, flags, _THOUGHT) != plain
        return Form(
            parts=tuple(part.text for part in outline.parts),
            holes=tuple(
                (place, part.message, part.strips_left, part.strips_right)
                for place, part in enumerate(outline.parts)
                if part.message is not None
            ),
            spans=tuple(spans),
            counts=counts,
            lacks=tuple(outline.lacks | (_THOUGHT_MARKS if minds_thoughts else frozenset())),
            no_left="".join(outline.no_left),
            no_right="".join(outline.no_right),
        )

    def _made_up(
        self, outline: Outline, roles: tuple[str, ...], flags: _Flags, text: str
    ) -> tuple[list[_Place], Mapping[str, int]] | None:
        """What is trained of messages whose contents begin with `text`, found by the long way, and what is counted on
        it; None where that depends on more than where the contents stand."""
        messages = tuple({"role": role, CONTENT: f"{text}{index}"} for index, role in enumerate(roles))
        training = tuple(MessageTraining(flag) for flag in flags)
        try:
            prepared = self._prepare(Conversation(messages, _MADE_UP, (), training))
        except DataError:
            return None
        parts = [part.text if part.message is None else messages[part.message][CONTENT] for part in outline.parts]
        starts = list(accumulate(map(len, parts), initial=0))
        written = [place for place, part in enumerate(outline.parts) if part.message is not None]
        expected = [(starts[place], starts[place + 1], outline.parts[place].message, 0) for place in written]
        pieces = [(piece.start, piece.end, piece.field.message, piece.offset) for piece in prepared.rendered.pieces]
        if prepared.rendered.text != "".join(parts) or pieces != expected or prepared.rendered.headers or not written:
            return None
        spans: list[_Place] = []
        for span in prepared.selection.spans:
            first, last = (bisect_right(starts, edge) - 1 for edge in span)
            spans.append((first, span[0] - starts[first], last, span[1] - starts[last]))
            if (first in written and spans[-1][1]) or (last in written and spans[-1][3]):
                return None  # Within a content: it would be another place in each.
        return spans, prepared.selection.counts


def _read(record: Record) -> tuple[tuple[str, ...], _Flags, list[str]] | None:
    """Roles, whether each message is trained by what the row says, and contents; None for a record that has more."""
    if not isinstance(record, Conversation) or record.tools:
        return None
    roles, contents = [], []
    for message in record.messages:
        role, content = message.get("role"), message.get(CONTENT)
        if len(message) != 2 or type(role) is not str or type(content) is not str or not content or content.isspace():
            return None
        roles.append(role)
        contents.append(content)
    if any(training.content or training.reasoning for training in record.training):
        return None
    return tuple(roles), tuple(training.train for training in record.training), contents
