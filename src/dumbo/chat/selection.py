"""Which characters of a rendered conversation are trained, by role, by turn, and by what a row says itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from dumbo.chat.completeness import CONTENT
from dumbo.chat.rendering import REASONING, Rendered
from dumbo.chat.traced import REWRITTEN
from dumbo.chat.turns import Turn, UnprovenTurnError, left_out_error
from dumbo.data.masking import Span, join_spans, subtract_spans
from dumbo.data.records import SILENT, CharRange, Conversation, MessageTraining

EndMode = Literal["turn", "all", "last", "none"]
HiddenThinking = Literal["mask", "train", "error"]


@dataclass(frozen=True)
class TrainedParts:
    """The choices of a train format."""

    roles: frozenset[str]
    """The roles whose messages are trained."""
    whole_text: bool = False
    """Train on everything, what the template writes between messages included."""
    end_of_text: EndMode | None = None
    """Of which turns the tokenizer's end token is trained: of the trained ones, all, the last trained one, or none.
    None is `turn`, or as the template marks it, where it has marks."""
    end_of_turn: EndMode | None = None
    """The same for what else ends a turn; None is as `end_of_text`. Where turns end in the tokenizer's end token,
    either of the two stands for both."""
    hidden_thinking: HiddenThinking = "mask"
    """A trained turn of which the template hides the thought: not trained, trained as it is written, or an error. Of no
    account where everything is trained."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What is trained of one conversation."""

    spans: list[Span]
    """Characters, in order, apart from each other."""
    trained_turns: frozenset[int] = frozenset()
    """The messages of which something is trained."""
    counts: Mapping[str, int] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def select(
    rendered: Rendered, conversation: Conversation, turns: Sequence[Turn | None], parts: TrainedParts
) -> Selection:
    """Choose the characters to train on.

    Raises:
        UnprovenTurnError: a message that is to be trained does not stand in one place, or is hidden or unmarked.
    """
    counts: Counter[str] = Counter()
    remarks: list[str] = []
    kept: list[Span] = []
    dropped: list[Span] = []
    trained: list[int] = []
    for index, turn in enumerate(turns):
        training = conversation.training[index] if conversation.training else SILENT
        by_role = parts.whole_text or conversation.messages[index]["role"] in parts.roles
        whole = by_role if training.train is None else training.train
        is_trained = _trains(training, whole)
        if is_trained:
            _check_text(index, turn, parts)
        elif parts.whole_text and (
            turn.left_out and not turn.hides_thought if turn else _has_text(conversation, index)
        ):
            # Of the whole text it could not be told apart.
            raise left_out_error(index, "what is not to be trained")
        if turn is None:
            continue
        if is_trained and turn.hides_thought and parts.hidden_thinking == "mask" and not parts.whole_text:
            counts["turns without their thought"] += 1
            remarks.append(f"message {index + 1} is not trained: the template leaves out what it thinks")
            is_trained = False
        if is_trained:
            trained.append(index)
            _count(turn, counts)
            kept += _characters(turn, training, whole)
        has_ranges = bool(training.content or training.reasoning)
        if has_ranges or is_trained != parts.whole_text:
            _check_place(turn, rendered, is_trained and not has_ranges)
        if not is_trained or has_ranges:
            dropped += [turn.body, (turn.pieces[0].start, turn.pieces[-1].end)]
    spans = [*subtract_spans([(0, len(rendered.text))], dropped), *kept] if parts.whole_text else kept
    marked = rendered.generated is not None
    spans = _with_ends(join_spans(spans), rendered.text, turns, trained, parts, marked)
    return Selection(spans, frozenset(trained), +counts, tuple(remarks))


def _has_text(conversation: Conversation, index: int) -> bool:
    return bool(str(conversation.messages[index].get(CONTENT) or "").strip())


def _check_text(index: int, turn: Turn | None, parts: TrainedParts) -> None:
    """Refuse a message that is to be trained and that the template does not write as it is."""
    if parts.whole_text:
        return
    if turn is None:
        raise UnprovenTurnError(index, "the template writes nothing of it")
    if turn.left_out and (not turn.hides_thought or parts.hidden_thinking == "error"):
        raise left_out_error(index, turn.left_out)


def _count(turn: Turn, counts: Counter[str]) -> None:
    if turn.role == "assistant":
        counts["turns with another header"] += not turn.follows_prompt
        counts["turns without an end"] += turn.end_of_turn is None and turn.end_of_text is None


def _trains(training: MessageTraining, whole: bool) -> bool:
    """Whether anything of a message is trained, `whole` being the decision for what has no ranges."""
    if training.train is False:
        return False
    if any(_trains_range(extent, whole) for extent in (*training.content, *training.reasoning)):
        return True
    return whole and not training.content


def _trains_range(extent: CharRange, whole: bool) -> bool:
    return whole if extent.train is None else extent.train


def _check_place(turn: Turn, rendered: Rendered, needs_mark: bool) -> None:
    """Make sure that what is trained, or left out of what is, can be told from the rest."""
    if not turn.is_whole:
        raise UnprovenTurnError(turn.index, "the template writes it more than once, or in several places")
    if not needs_mark or rendered.generated is None or turn.role != "assistant":
        return
    if turn.body[0] == turn.body[1] and any(piece.start < piece.end for piece in turn.pieces):
        raise UnprovenTurnError(turn.index, "the template marks nothing of it with {% generation %}")


def _characters(turn: Turn, training: MessageTraining, whole: bool) -> Iterator[Span]:
    """The trained characters of a turn, without what ends it."""
    ranges = {CONTENT: training.content, REASONING: training.reasoning}
    if not any(ranges.values()):
        yield from turn.marks or (turn.body,)
        return
    for piece in turn.pieces:
        extents = ranges.get(piece.field.name, ())
        if not extents:
            if whole:
                yield piece.start, piece.end
            continue
        if piece.offset == REWRITTEN:
            raise UnprovenTurnError(
                turn.index, f"the template rewrites its {piece.field.name}, and parts of it are named"
            )
        for extent in extents:
            if _trains_range(extent, whole):
                first = max(extent.start - piece.offset, 0)
                last = min(extent.end - piece.offset, piece.end - piece.start)
                if first < last:
                    yield piece.start + first, piece.start + last


def _with_ends(
    spans: Sequence[Span],
    text: str,
    turns: Sequence[Turn | None],
    trained: Sequence[int],
    parts: TrainedParts,
    is_marked: bool,
) -> list[Span]:
    """`spans` with the end tokens that are trained, and without those that are not. `trained` are the indices of the
    trained turns; where the template marks what is generated (`is_marked`), its marks decide unless a mode was
    chosen."""
    added: list[Span] = []
    removed: list[Span] = []
    for turn in turns:
        if turn is None:
            continue
        added_here: list[Span] = []
        of_text = parts.end_of_text or (parts.end_of_turn if turn.text_ends_turns else None)
        modes = (parts.end_of_turn or parts.end_of_text, of_text)
        for span, mode in zip((turn.end_of_turn, turn.end_of_text), modes, strict=True):
            is_chosen = _trains_end(span, mode, turn, trained, is_marked) if span else None
            if span and is_chosen is not None:
                (added_here if is_chosen else removed).append(span)
        added_here.sort()
        if len(added_here) > 1 and not text[added_here[0][1] : added_here[1][0]].strip():
            # To get from one end token to the next the model has to write the whitespace between them.
            added_here = [(added_here[0][0], added_here[1][1])]
        added += added_here
    return join_spans([*subtract_spans(spans, removed), *added])


def _trains_end(span: Span, mode: EndMode | None, turn: Turn, trained: Sequence[int], is_marked: bool) -> bool | None:
    """Whether an end token of a turn is trained; None: as the text around it, which the template's marks leave out."""
    if mode is None and is_marked and turn.role == "assistant" and turn.index in trained:
        return True if turn.body[0] <= span[0] and span[1] <= turn.body[1] else None
    chosen = {"turn": trained, "all": (turn.index,), "last": trained[-1:], "none": ()}
    return turn.index in chosen[mode or "turn"]
