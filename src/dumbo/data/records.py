"""What travels through the data pipeline: rows, records, examples; each knows the file and row that it came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dumbo.errors import DataError, Place, Problem

IGNORED = -100
"""The label of a token that is not trained on, as PyTorch's cross entropy has it."""


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


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in the shape that chat templates take: each a mapping with `role` and `content` at least."""

    messages: tuple[Mapping[str, Any], ...]
    origin: Origin
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Text:
    """Plain text to be trained on as it is."""

    text: str
    origin: Origin


Record = Conversation | Text
"""What a data format makes of a row. A train format says which kinds it takes."""


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids and labels of equal length; `labels[i]` is `input_ids[i]` where it is trained, else `IGNORED`."""

    input_ids: list[int]
    labels: list[int]
    origin: Origin


DataFormat = Callable[[Row], Record]
TrainFormat = Callable[[Record], Example]
