"""Where the messages of a conversation stand in its rendered text, and which tokens are therefore trained."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from dumbo.data.records import IGNORED

Span = tuple[int, int]
"""Characters of a text: the first, and the one after the last."""


class UnprovenSpanError(ValueError):
    """The place of a message's content is not certain; `index` is the message's, from 0."""

    def __init__(self, index: int, reason: str) -> None:
        self.index = index
        self.reason = reason
        super().__init__(f"message {index + 1}: {reason}")


@dataclass(frozen=True, slots=True)
class Piece:
    """The content of a message within a rendered text, which may differ from it in whitespace at its ends."""

    message: int
    start: int
    end: int


def choose_mark(text: str) -> str:
    """Return a character that `text` does not have, so that what is between two of them is ours."""
    return next(mark for mark in map(chr, range(0xE000, 0xF900)) if mark not in text)


def sentinel(mark: str, index: int) -> str:
    """Return what stands for the content of message `index`: without whitespace to strip or letters to capitalise."""
    return f"{mark}{index}{mark}"


def locate_contents(
    rendered: str, marked: str, mark: str, contents: Sequence[str], wanted: Collection[int]
) -> list[Piece]:
    """Find the contents of messages in `rendered`, in the order in which the text has them.

    `marked` is the same conversation rendered with `sentinel(mark, i)` for each `contents[i]`. What it has between the
    sentinels is what the template writes, and this with the contents in it must be `rendered` to the last character;
    each content as it is or stripped. Messages in `wanted` must appear exactly once.

    Raises `UnprovenSpanError` where this is not so, or where more than one reading is possible.
    """
    parts = re.split(f"{mark}([0-9]+){mark}", marked)
    literals, order = parts[::2], [int(index) for index in parts[1::2]]
    counts = Counter(order)
    for index in sorted(wanted):
        if counts[index] != 1:
            times = f"{counts[index]} times" if counts[index] else "nowhere"
            raise UnprovenSpanError(index, f"the template writes its content {times}")
    spans = _join(rendered, literals, [contents[i] for i in order]) or _fit(rendered, literals, order, contents)
    return [Piece(index, start, end) for index, (start, end) in zip(order, spans, strict=True)]


def _join(rendered: str, literals: Sequence[str], contents: Sequence[str]) -> list[Span] | None:
    """Spans of contents that appear as they are. No other reading has this length, so it is the only one."""
    spans, position = [], len(literals[0])
    for content, literal in zip(contents, literals[1:], strict=True):
        spans.append((position, position + len(content)))
        position += len(content) + len(literal)
    pieces = [literals[0], *(text for pair in zip(contents, literals[1:], strict=True) for text in pair)]
    return spans if "".join(pieces) == rendered else None


def _fit(rendered: str, literals: Sequence[str], order: Sequence[int], contents: Sequence[str]) -> list[Span]:
    """Spans of contents of which the template strips some. All readings are followed; exactly one may reach the end."""
    starts = {len(literals[0])} if rendered.startswith(literals[0]) else set()
    steps: list[set[Span]] = []
    for position, index in enumerate(order):
        literal = literals[position + 1]
        matches = _matches(rendered, starts, contents[index])
        steps.append({span for span in matches if rendered.startswith(literal, span[1])})
        starts = {end + len(literal) for _, end in steps[-1]}
        if not starts:
            # A content that fits was not rewritten: what differs comes after it, and most likely belongs to the next.
            blamed = order[position + 1] if matches and position + 1 < len(order) else index
            raise UnprovenSpanError(blamed, "the template rewrites its content, or writes other text around it")
    spans, following = [], len(rendered)
    for position in reversed(range(len(order))):
        readings = [span for span in steps[position] if span[1] + len(literals[position + 1]) == following]
        if len(readings) != 1:
            reason = "more than one place is possible for its content" if readings else "other text follows its content"
            raise UnprovenSpanError(order[position], reason)
        spans.append(readings[0])
        following = readings[0][0]
    return spans[::-1]


def _matches(rendered: str, starts: Collection[int], content: str) -> set[Span]:
    """Where `content` stands at one of `starts`, as it is or as templates strip it."""
    return {
        (start, start + len(variant))
        for start in starts
        for variant in _stripped(content)
        if rendered.startswith(variant, start)
    }


def _stripped(content: str) -> list[str]:
    """What templates make of a content: Jinja's `trim`, Python's strip methods, and those for line ends alone."""
    forms = (content.strip(), content.lstrip(), content.rstrip())
    line_forms = (content.strip("\n"), content.lstrip("\n"), content.rstrip("\n"))
    return list(dict.fromkeys((content, *forms, *line_forms)))


def widen_to_turn(
    rendered: str, pieces: Sequence[Piece], position: int, generation_prompt: str, end_of_turn: re.Pattern[str]
) -> Span:
    """Return the span of what the model itself has to write in the turn whose content is `pieces[position]`.

    It starts where the generation prompt ends, since all that follows is not given at inference: the space before an
    answer, an empty thinking block. Templates without a generation prompt give no more than the header, hence a space
    between header and content is the model's. It ends after what `end_of_turn` matches.
    """
    piece = pieces[position]
    previous = pieces[position - 1].end if position else 0
    following = pieces[position + 1].start if position + 1 < len(pieces) else len(rendered)
    before = rendered[previous : piece.start]
    if generation_prompt:
        found = before.rfind(generation_prompt)
        start = previous + found + len(generation_prompt) if found >= 0 else piece.start
    else:
        start = previous + len(before.rstrip(" \t"))
    end = end_of_turn.match(rendered, piece.end, following)
    return start, end.end() if end else piece.end


def label_tokens(input_ids: Sequence[int], offsets: Sequence[Span], spans: Sequence[Span]) -> list[int]:
    """Return the labels: the id of each token whose characters all lie in one of `spans`, else `IGNORED`.

    `offsets` are the tokens' characters, in order. A token that reaches over the edge of a span is ignored. One without
    characters (a prefix space that the tokenizer adds) belongs to the span that starts or goes on where it stands.
    """
    joined = _join_spans(spans)
    labels, current = [], 0
    for token, (start, end) in zip(input_ids, offsets, strict=True):
        while current < len(joined) and joined[current][1] <= start:
            current += 1
        inside = current < len(joined) and joined[current][0] <= start and end <= joined[current][1]
        labels.append(token if inside else IGNORED)
    return labels


def _join_spans(spans: Sequence[Span]) -> list[Span]:
    """Spans in order, those that touch made one: a token over their common edge lies within what is trained."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        elif start < end:
            joined.append((start, end))
    return joined
