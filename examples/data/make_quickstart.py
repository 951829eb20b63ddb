"""Writes the data of the quickstart: short tasks on random words and numbers, whose answers a few lines of Python know.

`quickstart_train.jsonl` is for training; no question of `quickstart_held_out.jsonl` is in it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

LETTERS = "abcdefghijklmnopqrstuvwxyz"
TRAINED, HELD_OUT = 12_000, 200
FOLDER = Path(__file__).parent


def word(draw: random.Random) -> str:
    """A word of 3 to 6 random letters."""
    return "".join(draw.choices(LETTERS, k=draw.randint(3, 6)))


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
    """Count a letter in a word that has only two different ones."""
    few = draw.sample(LETTERS, 2)
    text = "".join(draw.choices(few, k=draw.randint(3, 7)))
    return f"count {few[0]} in {spelled(text)}", str(text.count(few[0]))


def add(draw: random.Random) -> tuple[str, str]:
    """Add two numbers below 100."""
    first, second = draw.randrange(100), draw.randrange(100)
    return f"add {first} and {second}", str(first + second)


FAMILIES = (reverse, sort, upper, count, add)


def questions(draw: random.Random) -> Iterator[tuple[str, str]]:
    """Questions with their answers, of all families in turn, none of them twice."""
    seen: set[str] = set()
    while True:
        for family in FAMILIES:
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
    """Write both files into `folder`."""
    rows = questions(random.Random(1))
    held_out = [next(rows) for _ in range(HELD_OUT)]
    train = [next(rows) for _ in range(TRAINED)]
    write(folder / "quickstart_held_out.jsonl", held_out)
    write(folder / "quickstart_train.jsonl", train)


if __name__ == "__main__":
    main()
