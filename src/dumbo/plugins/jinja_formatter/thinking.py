"""Thoughts that an answer begins with, told from the answer."""

from __future__ import annotations

from dataclasses import dataclass

_PAIRS = (
    ("<think>", "</think>"),
    ("<reasoning>", "</reasoning>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
_SOLUTION, _SOLUTION_END = "<|begin_of_solution|>", "<|end_of_solution|>"


class UnsplitThinkingError(ValueError):
    """Thoughts that cannot be told from the answer: what is wrong, as part of a sentence."""


@dataclass(frozen=True, slots=True)
class SplitText:
    """Where thoughts and answer lie in a text: each from its first character to behind its last."""

    thoughts: tuple[int, int]
    answer: tuple[int, int]


def split_thinking(text: str) -> SplitText | None:
    """Where the thoughts are that `text` begins with, without their tags and the white space around them; None for a
    text without thoughts.

    Raises:
        UnsplitThinkingError: thoughts that do not end, or that come after other text.
    """
    start = len(text) - len(text.lstrip())
    for opening, closing in _PAIRS:
        if text.startswith(opening, start):
            end = text.find(closing, start)
            if end < 0:
                raise UnsplitThinkingError(f"begins with '{opening}' and has no '{closing}'")
            return SplitText(_stripped(text, start + len(opening), end), _answer(text, end + len(closing)))
    for opening, closing in _PAIRS:
        found = text.find(opening)
        if 0 <= found < text.find(closing, found):
            raise UnsplitThinkingError(f"has text before '{opening}', which would be lost or change its place")
    return None


def _answer(text: str, start: int) -> tuple[int, int]:
    """From `start` on, without the white space before it; inside of the tags of a solution where there are some."""
    while start < len(text) and text[start].isspace():
        start += 1
    if not text.startswith(_SOLUTION, start):
        return start, len(text)
    end = text.rfind(_SOLUTION_END, start)
    if end < 0 or text[end + len(_SOLUTION_END) :].strip():
        raise UnsplitThinkingError(f"has '{_SOLUTION}' and does not end in '{_SOLUTION_END}'")
    return _stripped(text, start + len(_SOLUTION), end)


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """The range `[start, end)` of `text` without the white space at its ends."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end
