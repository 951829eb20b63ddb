"""Commands before a prompt: `:complete N` and `:mask R`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dumbo.errors import DumboError

COMPLETION = 64
"""Tokens of `:complete` without a number."""
_COMMAND = re.compile(r":(complete|mask)(?=\s|$)\s?")
_NUMBER = re.compile(r"([+-]?\d+)(?=\s|$)\s?")
_SHARE = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?=\s|$)\s?")


@dataclass(frozen=True)
class Request:
    """What a prompt asks for."""

    text: str
    """What is left behind the commands, with all its whitespace."""
    complete: int | None = None
    """Tokens to write behind the text; None where no `:complete` says so."""
    masks: bool = False
    """Whether tokens of the text itself are to be masked and filled in."""
    share: float | None = None
    """Which share of them; None for a share drawn at random."""


def begins_with_command(prompt: str) -> bool:
    """Whether a command is the first word, or would be without the whitespace before it, which makes it text."""
    return _COMMAND.match(prompt.lstrip()) is not None


def parse(prompt: str) -> Request:
    """Read the commands at the beginning of `prompt`, from the left; the first word that is none ends them.

    `:complete` without a whole number completes with `COMPLETION` tokens, `:mask` without a number masks a share drawn
    at random. One whitespace character behind a command, and one behind its number, belongs to it; all others are text.

    Raises:
        DumboError: fewer tokens than one, a share that is not above 0 and at most 1, a command twice.
    """
    rest, complete, masks, share = prompt, None, False, None
    while found := _COMMAND.match(rest):
        word, rest = found[1], rest[found.end() :]
        number = (_NUMBER if word == "complete" else _SHARE).match(rest)
        rest = rest[number.end() :] if number else rest
        if complete is not None if word == "complete" else masks:
            raise DumboError(f":{word} is written twice")
        if word == "complete":
            complete = int(number[1]) if number else COMPLETION
            if complete < 1:
                raise DumboError(f":complete {complete} asks for no token; write 1 or more")
        else:
            masks, share = True, float(number[1]) if number else None
            if share is not None and not 0 < share <= 1:
                raise DumboError(f":mask {share:g} is no share; write a number above 0, at most 1")
    return Request(rest, complete, masks, share)
