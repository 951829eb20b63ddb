"""Where each message stands in a rendered conversation, what of it the template leaves out, and where its turn ends."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dumbo.chat.completeness import CONTENT, THOUGHT_TAG, left_out_of
from dumbo.chat.end_tokens import AnswerFrame
from dumbo.chat.rendering import REASONING_KEYS, TOOL_CALLS, Piece, Rendered
from dumbo.chat.traced import REWRITTEN, TOOLS, Field
from dumbo.data.masking import Span
from dumbo.data.records import Conversation, Message

_WHITESPACE = re.compile(r"\s*")


class UnprovenTurnError(ValueError):
    """What a message says, or where, is not certain in the rendered text; `index` is the message's, from 0."""

    def __init__(self, index: int, reason: str) -> None:
        self.index = index
        self.reason = reason
        super().__init__(reason if index == TOOLS else f"message {index + 1}: {reason}")


@dataclass(frozen=True, slots=True)
class Turn:
    """A message in a rendered conversation. All places are characters of its text."""

    index: int
    role: str
    pieces: tuple[Piece, ...]
    """What the template writes of the message; never none."""
    body: Span
    """What the model has to write, without the tokens that end the turn: of an assistant all after the generation
    prompt."""
    marks: tuple[Span, ...]
    """The characters of an assistant's turn that the template marks as generated, where it has marks."""
    end_of_turn: Span | None
    end_of_text: Span | None
    """The tokenizer's end token, where it follows the turn: alone, or with what ends the turn."""
    left_out: str
    """What of the message the template leaves out or rewrites, in words; empty where it is all there."""
    text_ends_turns: bool
    """Whether the tokenizer's end token is what ends turns."""
    hides_thought: bool
    """Whether that is what the assistant thought, and nothing else."""
    follows_prompt: bool
    """Whether the generation prompt stands before it, as it will at inference; False for other roles."""
    is_whole: bool
    """Whether everything stands in one place, once."""


def find_turns(rendered: Rendered, conversation: Conversation, frame: AnswerFrame) -> list[Turn | None]:
    """The turn of each message, None for one of which the template writes nothing at all."""
    by_message: dict[int, list[int]] = {}
    for place, piece in enumerate(rendered.pieces):
        by_message.setdefault(piece.field.message, []).append(place)
    turns: list[Turn | None] = []
    for index, message in enumerate(conversation.messages):
        # Behind the last message nothing of another can stand, and else only where the next one's place is known.
        is_followed = index + 1 in by_message or index + 1 == len(conversation.messages)
        places = by_message.get(index)
        turns.append(_turn(rendered, index, message, places, frame, is_followed) if places else None)
    return turns


def check_complete(rendered: Rendered, conversation: Conversation, turns: Sequence[Turn | None]) -> None:
    """Make sure that the template writes all that there is, but for what an assistant thought.

    Raises:
        UnprovenTurnError: something is left out or rewritten.
    """
    if conversation.tools and not any(piece.field.message == TOOLS for piece in rendered.pieces):
        raise UnprovenTurnError(TOOLS, "the template does not write the tools")
    for index, (message, turn) in enumerate(zip(conversation.messages, turns, strict=True)):
        left_out, hides_thought = (turn.left_out, turn.hides_thought) if turn else left_out_of(message, ())
        if left_out and not hides_thought:
            raise left_out_error(index, left_out)


def left_out_error(index: int, what: str) -> UnprovenTurnError:
    """The error for a message of which something is left out."""
    return UnprovenTurnError(index, f"the template leaves out or rewrites {what}")


def _own_places(rendered: Rendered, places: list[int]) -> list[int]:
    """The places of a message's pieces without those where the header of a tool's result names the call again, and
    without empty ones where there are others: some templates write an empty content behind a tool's result. Of a
    message that is all empty, its first and its last: a thought and a content are not in one place."""
    seen: dict[Field, set[int]] = {}
    kept: list[int] = []
    for place in places:
        piece = rendered.pieces[place]
        offsets = seen.setdefault(piece.field, set())
        is_again = piece.offset in offsets or REWRITTEN in offsets or (piece.offset == REWRITTEN and bool(offsets))
        has_text = piece.start < piece.end
        if has_text and not (is_again and piece.field.name.startswith(TOOL_CALLS)):
            kept.append(place)
        if has_text or piece.offset == REWRITTEN:  # What else is in a JSON text stands as an empty piece behind it.
            offsets.add(piece.offset)
    return kept or sorted({places[0], places[-1]})


def _turn(
    rendered: Rendered, index: int, message: Message, places: list[int], frame: AnswerFrame, is_followed: bool
) -> Turn:
    left_out, hides_thought = left_out_of(message, [rendered.pieces[place] for place in places])
    all_places, places = set(places), _own_places(rendered, places)
    text, pieces, role = rendered.text, [rendered.pieces[place] for place in places], str(message["role"])
    first, last = pieces[0].start, pieces[-1].end
    previous, following = _neighbours(rendered, index, places[0], places[-1])
    start, follows_prompt = first, False
    if role == "assistant":
        start, follows_prompt = _answer_start(text, previous, first, frame)
    may_go_on = is_followed and (role != "assistant" or _is_framed(message))
    end_of_turn, end_of_text = _ends(text, last, following, frame, may_go_on)
    ends = sorted(end for end in (end_of_turn, end_of_text) if end)
    body = (start, ends[0][0] if ends and role == "assistant" else last)
    marks: tuple[Span, ...] = ()
    if rendered.generated is not None and role == "assistant":
        marks = tuple(_marks_within(rendered.generated, previous, following, first))
        body = (marks[0][0], marks[-1][1]) if marks else (first, first)
    return Turn(
        index=index,
        role=role,
        pieces=tuple(pieces),
        body=body,
        marks=marks,
        end_of_turn=end_of_turn,
        end_of_text=end_of_text,
        text_ends_turns=frame.end_of_text in frame.end_of_turn,
        left_out=left_out,
        hides_thought=hides_thought,
        follows_prompt=follows_prompt,
        is_whole=all_places.issuperset(range(places[0], places[-1] + 1)) and not _repeats(pieces),
    )


def _marks_within(marks: Sequence[Span], previous: int, following: int, first: int) -> Sequence[Span]:
    """The marks between the neighbours of a message whose first character is `first`; one that ends before it right
    behind the message before belongs to that one, which was empty."""
    begin = bisect_left(marks, (previous, 0))
    end = bisect_right(marks, (following, 0))
    within = [span for span in marks[begin:end] if span[1] <= following]
    return [span for span in within if previous < span[0] or first <= span[1]]


def _is_framed(message: Message) -> bool:
    """Whether a template may write something of its own behind what an assistant says: behind a call or a thought."""
    if any(message.get(key) for key in (TOOL_CALLS, *REASONING_KEYS)):
        return True
    return THOUGHT_TAG.search(message[CONTENT]) is not None


def _neighbours(rendered: Rendered, index: int, first: int, last: int) -> Span:
    """Where the nearest pieces of other messages end before the piece at `first` and begin after the one at `last`. An
    empty piece of the message itself may stand in between, before what begins a call of a tool or behind it."""
    pieces = rendered.pieces
    before, after = first - 1, last + 1
    while before >= 0 and pieces[before].field.message == index:
        before -= 1
    while after < len(pieces) and pieces[after].field.message == index:
        after += 1
    end = pieces[before].end if before >= 0 else 0
    return end, pieces[after].start if after < len(pieces) else len(rendered.text)


def _answer_start(text: str, previous: int, first: int, frame: AnswerFrame) -> tuple[int, bool]:
    """Where an answer begins: after the generation prompt, since what follows it is not given at inference (an empty
    thought). A space between header and answer is the model's to write, even one that ends the generation prompt: most
    tokenizers make one token of it and the first word, and prompts are written as rows are, without it."""
    if not frame.generation_prompt:
        opening = frame.call_opening if text.endswith(frame.call_opening, previous, first) else ""
        return previous + len(text[previous : first - len(opening)].rstrip(" \t")), True
    found = text.rfind(frame.generation_prompt, previous, first)
    return (found + len(frame.generation_prompt.rstrip(" \t")), True) if found >= 0 else (first, False)


def _ends(text: str, last: int, following: int, frame: AnswerFrame, may_go_on: bool) -> tuple[Span | None, Span | None]:
    """The end of the turn and of the text behind a message's last character and before the next message.

    Only whitespace may stand before them, or what the template was found to write there: with other text in between
    they may be another message's, of which nothing is known. With `may_go_on` there is none.
    """
    others = [token for token in frame.end_of_turn if token != frame.end_of_text]
    end_of_turn = _first(text, others, last, following)
    end_of_text = _first(text, [frame.end_of_text], last, following) if frame.end_of_text else None
    position, accepted = last, []
    for span in sorted(span for span in (end_of_turn, end_of_text) if span):
        gap = text[position : span[0]]
        is_known = position == last and (may_go_on or gap == frame.closing)
        if gap.strip() and not is_known:
            break
        token, (start, end) = text[slice(*span)], span
        # Some tokens take in the whitespace beside them.
        if token in frame.strips_left:
            start = position + len(gap.rstrip())
        if token in frame.strips_right and (blank := _WHITESPACE.match(text, end)):
            end = blank.end()
        accepted.append((span, (start, end)))
        position = span[1]
    kept = dict(accepted)
    return kept.get(end_of_turn) if end_of_turn else None, kept.get(end_of_text) if end_of_text else None


def _first(text: str, tokens: Sequence[str], start: int, stop: int) -> Span | None:
    """The first place of any of `tokens`; of several there, the longest."""
    found = [(place, -len(token)) for token in tokens if (place := text.find(token, start, stop)) >= 0]
    if not found:
        return None
    place, length = min(found)
    return place, place - length


def _repeats(pieces: Sequence[Piece]) -> bool:
    """Whether some text stands there more than once."""
    by_field: dict[Any, int] = {}
    for piece in sorted(pieces, key=lambda piece: piece.offset):
        if piece.end == piece.start:
            continue
        if piece.field in by_field and (piece.offset == REWRITTEN or piece.offset < by_field[piece.field]):
            return True
        # Sorted, a rewritten one comes first, and stands for all of the text.
        is_all = piece.offset == REWRITTEN
        by_field[piece.field] = len(piece.field.text) if is_all else piece.offset + piece.end - piece.start
    return False
