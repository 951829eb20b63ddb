"""Writes the data of the quickstart: short tasks on random words and numbers, whose answers a few lines of Python know.

`quickstart_train.jsonl` is for training; no question of `quickstart_held_out.jsonl` is in it. The `lora` files hold a
task that is not among those.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

LETTERS = "abcdefghijklmnopqrstuvwxyz"
FOLDER = Path(__file__).parent
Family = Callable[[random.Random], tuple[str, str]]


def word(draw: random.Random, longest: int = 6) -> str:
    """A word of 3 to `longest` random letters."""
    return "".join(draw.choices(LETTERS, k=draw.randint(3, longest)))


def spelled(text: str) -> str:
    """The letters with spaces between them, so that a tokenizer makes one token of each, wherever it stands."""
    return " ".join(text)


def reverse(draw: random.Random) -> tuple[str, str]:
    """Write a word backwards."""
    text = word(draw)
    return f"reverse {spelled(text)}", spelled(text[::-1])


def sort(draw: random.Random) -> tuple[str, str]:
    """Put the letters of a word in order."""
    text = word(draw)
    return f"sort {spelled(text)}", spelled("".join(sorted(text)))


def upper(draw: random.Random) -> tuple[str, str]:
    """Write a word in capital letters."""
    text = word(draw)
    return f"upper {spelled(text)}", spelled(text.upper())


def count(draw: random.Random) -> tuple[str, str]:
    """Count the letters of a word."""
    text = word(draw, longest=9)
    return f"count {spelled(text)}", str(len(text))


def add(draw: random.Random) -> tuple[str, str]:
    """Add two numbers below 100."""
    first, second = draw.randrange(100), draw.randrange(100)
    return f"add {first} and {second}", str(first + second)


def double(draw: random.Random) -> tuple[str, str]:
    """Write every letter twice."""
    text = word(draw)
    return f"double {spelled(text)}", spelled("".join(2 * letter for letter in text))


FAMILIES = (reverse, sort, upper, count, add, add)
"""Adding is the hardest to learn, and so comes twice as often."""


def questions(families: Sequence[Family], draw: random.Random) -> Iterator[tuple[str, str]]:
    """Questions with their answers, of all families in turn, none of them twice."""
    seen: set[str] = set()
    while True:
        for family in families:
            question, answer = family(draw)
            while question in seen:
                question, answer = family(draw)
            seen.add(question)
            yield question, answer


def write(file: Path, rows: list[tuple[str, str]]) -> None:
    """Write `rows` in Alpaca's shape."""
    lines = [json.dumps({"instruction": question, "output": answer}) + "\n" for question, answer in rows]
    file.write_text("".join(lines), encoding="utf-8")


def main(folder: Path = FOLDER) -> None:
    """Write all files into `folder`."""
    for name, families, trained, held_out in (
        ("quickstart", FAMILIES, 12_000, 200),
        ("lora", (double,), 1000, 100),
    ):
        rows = questions(families, random.Random(1))
        write(folder / f"{name}_held_out.jsonl", [next(rows) for _ in range(held_out)])
        write(folder / f"{name}_train.jsonl", [next(rows) for _ in range(trained)])


if __name__ == "__main__":
    main()
