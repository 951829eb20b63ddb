"""Prompts as rows have them: what rows that differ in their answers alone begin with."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

STAND_INS = ("A", "z", "7")
"""Stand-ins for an answer that share no first byte: what their rows have in common is the prompt."""


def shared_start(rows: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all rows begin with."""
    same = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*rows, strict=False))
    return [tokens[0] for tokens in same]
