"""Texts with names in braces, which rows fill in."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


@dataclass(frozen=True, slots=True)
class Pattern:
    """A text in pieces: what stands in it literally, and each time the name behind it (None after the last)."""

    pieces: tuple[tuple[str, str | None], ...]

    @property
    def names(self) -> frozenset[str]:
        """What is filled in."""
        return frozenset(name for _, name in self.pieces if name is not None)

    def write(self, value_of: Callable[[str], str]) -> str:
        """The text with `value_of(name)` in the place of each name. Braces in the values mean nothing."""
        return "".join(literal + (value_of(name) if name is not None else "") for literal, name in self.pieces)


def parse_pattern(text: str) -> Pattern:
    """The pattern that `text` writes: `{name}` is filled in, `{{` and `}}` are braces.

    A name is taken as it stands, dots and colons included: nothing in it is looked up or formatted.

    Raises:
        ValueError: a brace without its partner, or nothing between two.
    """
    pieces: list[tuple[str, str | None]] = []
    literal, start = "", 0
    for match in _PIECE.finditer(text):
        literal += text[start : match.start()]
        start = match.end()
        found, name = match.group(), match.group(1)
        if found in ("{{", "}}"):
            literal += found[0]
        elif not name:
            what = "a name is missing in '{}'" if found == "{}" else f"'{found}' stands alone"
            raise ValueError(f"{what} at character {match.start() + 1}; write {found[0] * 2} for a brace itself")
        else:
            pieces.append((literal, name))
            literal = ""
    return Pattern((*pieces, (literal + text[start:], None)))
