"""What travels through the data pipeline: rows, records, examples; each knows the file and row that it came from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dumbo.errors import DataError, Place, Problem

if TYPE_CHECKING:
    from dumbo.data.columns import Column

IGNORED = -100
"""The label of a token that is not trained on, as PyTorch's cross entropy has it."""

WEIGHTS = "weights"
"""What rows, examples and batches call how much each of their tokens counts, where they do not all count alike."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row came from, for messages."""

    source: str
    """File name or hub address."""
    row: int
    """From 1; the line where the file is written in lines."""

    def error(self, message: str, *hints: str) -> DataError:
        """The error to raise for a row that cannot be used."""
        return DataError([Problem(message, place=Place(self.source, self.row), hints=hints)])


@dataclass(frozen=True, slots=True)
class Row:
    """A row as a reader found it: plain Python values by column name."""

    values: Mapping[str, Any]
    origin: Origin


ColumnMaker = Callable[[Sequence[int], Sequence[int]], "Mapping[str, Column]"]
"""(token ids, labels) -> columns beside them: what a row has for its tokens, once these are known."""

Message = Mapping[str, Any]
"""A message as chat templates take it: `role` and `content`, perhaps `reasoning_content` and `tool_calls`, and whatever
else the template reads."""


@dataclass(frozen=True, slots=True)
class CharRange:
    """What a row says of the characters `[start, end)` of a message's text."""

    start: int
    end: int
    train: bool | None = None
    """None: as the message."""


@dataclass(frozen=True, slots=True)
class MessageTraining:
    """What a row itself says of the training on one of its messages; the rest is the train format's to decide.

    A text with ranges is trained in them alone: what they leave out is not.
    """

    train: bool | None = None
    """Whether to train on the message; None: by its role."""
    content: tuple[CharRange, ...] = ()
    reasoning: tuple[CharRange, ...] = ()


SILENT = MessageTraining()
"""Of a message about which the row says nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighted:
    """What all records have."""

    weight: float = 1.0
    """How much its trained tokens count in the loss; the run sets it, by `loss_weight_field`."""


@dataclass(frozen=True, slots=True)
class Conversation(Weighted):
    """Messages of several roles, and the tools that their assistant may call."""

    messages: tuple[Message, ...]
    origin: Origin
    tools: tuple[Mapping[str, Any], ...] = ()
    """JSON schemas."""
    training: tuple[MessageTraining, ...] = ()
    """One for each message, or none where the row says nothing about training."""
    columns: ColumnMaker | None = None


@dataclass(frozen=True, slots=True)
class Preference(Weighted):
    """Two ways to go on after the same messages, the better one first."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    origin: Origin
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Rating(Weighted):
    """One way to go on, and whether it was a good one."""

    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]
    desirable: bool
    origin: Origin
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt(Weighted):
    """Messages to answer, with what rewards need to know about them."""

    messages: tuple[Message, ...]
    origin: Origin
    tools: tuple[Mapping[str, Any], ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Other columns of the row, such as the right answer."""


@dataclass(frozen=True, slots=True)
class Text(Weighted):
    """Plain text to be trained on as it is."""

    text: str
    origin: Origin


@dataclass(frozen=True, slots=True)
class Segments(Weighted):
    """Text in pieces, joined as they are, each trained on or not."""

    segments: tuple[tuple[str, bool], ...]
    """Pairs of text and whether it is trained."""
    origin: Origin


@dataclass(frozen=True, slots=True)
class Tokens(Weighted):
    """A row that somebody has tokenised already."""

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    origin: Origin
    columns: ColumnMaker | None = None


@dataclass(frozen=True, slots=True)
class Steps(Weighted):
    """A prompt and the steps of a solution, each judged right or wrong."""

    prompt: str
    steps: tuple[str, ...]
    labels: tuple[int, ...]
    """One for each step: 1 where it is right, 0 where it is wrong."""
    origin: Origin


Record = Conversation | Preference | Rating | Prompt | Text | Segments | Tokens | Steps
"""What a data format makes of a row. A train format says which kinds it takes."""


def texts_of(record: Record) -> Iterator[str]:
    """The texts of a record as its row has them; rows that are tokenised already have none."""
    if isinstance(record, Text):
        yield record.text
    elif isinstance(record, Segments):
        yield from (text for text, _ in record.segments)
    elif isinstance(record, Steps):
        yield from (record.prompt, *record.steps)
    elif not isinstance(record, Tokens):
        yield from (message["content"] for message in _messages(record) if isinstance(message.get("content"), str))


def _messages(record: Conversation | Preference | Rating | Prompt) -> tuple[Message, ...]:
    if isinstance(record, Preference):
        return (*record.prompt, *record.chosen, *record.rejected)
    return (*record.prompt, *record.completion) if isinstance(record, Rating) else record.messages


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids and labels of equal length; `labels[i]` is `input_ids[i]` where it is trained, else `IGNORED`."""

    input_ids: Sequence[int]
    labels: Sequence[int]
    origin: Origin
    counts: Mapping[str, int] = field(default_factory=dict)
    """What the format met on the way and nobody should miss, by name; they are added up for each source."""
    columns: Mapping[str, Column] = field(default_factory=dict)
    """What there is beside the tokens: names of one's own -> a value or a row of values for each token."""


DataFormat = Callable[[Row], Record]
TrainFormat = Callable[[Record], Example]
