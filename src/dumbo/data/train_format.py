"""What a train format may do beyond making one example of one record: batches, explanations, prompts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dumbo.data.records import Example, Message, Record
from dumbo.errors import DataError


@dataclass(frozen=True, slots=True)
class MessageTokens:
    """The tokens `[start, end)` of an example that one message takes: those with a character of its text."""

    index: int
    """From 0."""
    role: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """An example with what people want to know about it."""

    example: Example
    texts: tuple[str, ...]
    """The text of each token; a character of several tokens is the first one's."""
    messages: tuple[MessageTokens, ...] = ()
    straddling: frozenset[int] = frozenset()
    """Positions of tokens that reach over the edge of what is trained, and are therefore not."""
    remarks: tuple[str, ...] = ()
    """What was done to this row that its reader might not expect."""


class TrainFormatter(ABC):
    """A train format that works in batches and explains itself. A plain function from record to example is one too."""

    warnings: Sequence[str] = ()
    """What is doubtful about every row: said once for a source, and found by `dumbo inspect`."""
    chat_template: str | None = None
    """The template that writes its rows, where it is one that tokenizers can keep: saved with the model's tokenizer."""

    @abstractmethod
    def encode_batch(self, records: Sequence[Record]) -> list[Example | DataError]:
        """An example for each record, or what makes it unusable."""

    def encode_batches(self, batches: Iterable[Sequence[Record]]) -> Iterator[list[Example | DataError]]:
        """As `encode_batch` for each of `batches`; one that can work on several at once does."""
        for batch in batches:
            yield self.encode_batch(batch)

    @abstractmethod
    def explain(self, record: Record) -> Explanation:
        """The record's example, explained.

        Raises:
            DataError: the record cannot be used.
        """

    def write_prompt(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> list[int] | None:
        """The ids of `messages` and the header of an answer, as rows of training have them; None where only rows that
        are complete can be written.

        Raises:
            DataError: the format cannot write these messages.
        """
        return None

    def __call__(self, record: Record) -> Example:
        """The record's example.

        Raises:
            DataError: the record cannot be used.
        """
        [result] = self.encode_batch([record])
        if isinstance(result, DataError):
            raise result
        return result
