"""What the rows of a source add up to: tokens, what is trained of them, messages by role, and what looks wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dumbo.data.records import IGNORED, Example, Origin, Record
from dumbo.data.train_format import MessageTokens
from dumbo.errors import DataError
from dumbo.inspection.tokens import special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dumbo.data.source_encoder import SourceEncoder
    from dumbo.data.sources import Source

EXPLAINED = 1000
"""Rows of a source, spread over it, whose messages are counted: to explain a row takes longer than to make it."""


@dataclass
class Found:
    """Rows that have something in common: how many, and the first."""

    count: int = 0
    first: Origin | None = None

    def add(self, origin: Origin) -> None:
        """Count a row."""
        self.count += 1
        self.first = self.first or origin


@dataclass
class RoleTally:
    """The messages of one role."""

    messages: int = 0
    tokens: int = 0
    trained: int = 0
    without: int = 0
    """Messages of which no token is trained."""

    def add(self, labels: Sequence[int]) -> None:
        """Count a message by the labels of its tokens."""
        trained = num_trained(labels)
        self.messages += 1
        self.tokens += len(labels)
        self.trained += trained
        self.without += not trained


@dataclass
class Tally:
    """All rows of a source that can be used."""

    rows: int = 0
    tokens: int = 0
    trained: int = 0
    longest: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    """What the train format counted, by its names."""
    explained: int = 0
    roles: dict[str, RoleTally] = field(default_factory=dict)
    """Of the rows that were explained."""
    untrained: Found = field(default_factory=Found)
    doubled_start: Found = field(default_factory=Found)
    open_ended: Found = field(default_factory=Found)
    """Rows whose last trained token ends nothing."""
    too_long: Found = field(default_factory=Found)

    @property
    def share(self) -> float:
        """How much of the tokens is trained."""
        return self.trained / max(self.tokens, 1)

    def add_messages(self, messages: Iterable[MessageTokens], labels: Sequence[int]) -> None:
        """Count the messages of a row that was explained."""
        self.explained += 1
        for message in messages:
            self.roles.setdefault(message.role, RoleTally()).add(labels[message.start : message.end])


def num_trained(labels: Sequence[int]) -> int:
    """How many of the labels are those of trained tokens."""
    return sum(label != IGNORED for label in labels)


class Ends:
    """Tells whether what a row trains comes to an end, and whether it begins twice."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._ends = special_tokens(tokenizer) | ({end} if isinstance(end, int) else set())
        self._blank: dict[int, bool] = {}

    def starts_twice(self, input_ids: Sequence[int]) -> bool:
        """Whether the first two tokens are both the start token."""
        return self._start is not None and list(input_ids[:2]) == [self._start] * 2

    def is_open(self, example: Example) -> bool:
        """Whether the last trained token is no end token; white space behind one is the template's."""
        trained = [token for token, label in zip(example.input_ids, example.labels, strict=True) if label != IGNORED]
        while trained and self._is_blank(trained[-1]):
            trained.pop()
        return bool(trained) and trained[-1] not in self._ends

    def _is_blank(self, token: int) -> bool:
        if token not in self._blank:
            text = self._tokenizer.decode([token], skip_special_tokens=False)
            self._blank[token] = token not in self._ends and not str(text).strip()
        return self._blank[token]


def tally_source(
    source: Source,
    encoder: SourceEncoder,
    tokenizer: PreTrainedTokenizerBase,
    *,
    records: Iterable[Record] | None = None,
    explained: int = 0,
    limit: int | None = None,
) -> Tally:
    """Make the examples of all `records` (those of the source) and count; bad ones are noted in the source.

    Of `explained` rows, spread over the source, the messages are counted; rows over `limit` tokens are too long.
    """
    tally, ends = Tally(), Ends(tokenizer)
    every = -(-len(source.records) // explained) if explained else 0
    results = encoder.encode(source.records if records is None else records)
    for number, (record, example) in enumerate(source.convert(results, _usable)):
        ids, labels, trained = example.input_ids, example.labels, num_trained(example.labels)
        tally.rows += 1
        tally.tokens += len(ids)
        tally.trained += trained
        tally.longest = max(tally.longest, len(ids))
        tally.counts.update(example.counts)
        for found, is_so in (
            (tally.untrained, not trained),
            (tally.doubled_start, ends.starts_twice(ids)),
            (tally.open_ended, ends.is_open(example)),
            (tally.too_long, limit is not None and len(ids) > limit),
        ):
            if is_so:
                found.add(record.origin)
        explanation = encoder.explain(record) if every and number % every == 0 else None
        if explanation is not None:
            tally.add_messages(explanation.messages, labels)
    return tally


def _usable(result: tuple[Record, Example | DataError]) -> tuple[Record, Example]:
    record, example = result
    if isinstance(example, DataError):
        raise example
    return record, example
