"""Questions on a terminal: numbered choices, a default for Enter, and wrong answers asked again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from dumbo.errors import Interrupted

T = TypeVar("T")


@dataclass(frozen=True)
class Choice(Generic[T]):
    """One of several answers."""

    value: T
    label: str
    about: str = ""


def choose(
    question: str,
    choices: Sequence[Choice[T]],
    read: Callable[[str], T | str] | None = None,
    other: Sequence[str] = (),
) -> T:
    """The choice that somebody takes by its number; the first one is the default.

    What is no number is given to `read`, where there is one, whose text says why it is no answer; the lines `other`
    tell what else may be written.
    """
    _head(question)
    labels = max(len(choice.label) for choice in choices)
    numbers = len(str(len(choices)))
    for number, choice in enumerate(choices, start=1):
        print(f"  {number:>{numbers}}  {choice.label.ljust(labels)}  {choice.about}".rstrip())
    for line in other:
        print(f"  {' ' * numbers}  {line}")
    while True:
        text = _line("1")
        if not text:
            return choices[0].value
        if text.isdecimal() and 0 < int(text) <= len(choices):
            return choices[int(text) - 1].value
        by_name = [choice.value for choice in choices if choice.label.lower() == text.lower()]
        if by_name:
            return by_name[0]
        if read is None or text.isdecimal():
            _again(f"write a number from 1 to {len(choices)}")
            continue
        answer = read(text)
        if not isinstance(answer, str):
            return answer
        _again(answer)


def ask(question: str, default: str, read: Callable[[str], T | str], about: str = "") -> T:
    """What `read` makes of an answer; its text says why it is none."""
    _head(question)
    if about:
        print(f"  {about}")
    while True:
        answer = read(_line(default) or default)
        if not isinstance(answer, str):
            return answer
        _again(answer)


def _head(question: str) -> None:
    print(f"\n{question}")


def _again(why: str) -> None:
    print(f"  {why}")


def _line(default: str) -> str:
    try:
        return input(f"[{default}] > ").strip()
    except EOFError:
        print()
        raise Interrupted("nothing was written") from None
