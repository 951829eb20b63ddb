"""What a generator can do that fills in masked tokens, beside writing answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Infilling:
    """A text of which some tokens were masked, and what stands there instead; special tokens are shown."""

    original: str
    masked: str
    generated: str
    masked_tokens: int
    total_tokens: int


@runtime_checkable
class Infiller(Protocol):
    """A generator that fills in masked tokens."""

    def infillings(self, texts: Sequence[Sequence[int]], places: Sequence[Sequence[bool]]) -> list[Infilling]:
        """The texts, whose tokens are masked where `places` says so, with the likeliest tokens filled in."""
        ...
