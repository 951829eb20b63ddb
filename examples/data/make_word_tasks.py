"""Writes `word_tasks.jsonl`: questions about words, whose answers a few lines of Python know."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

WORDS = (
    "apple river candle window garden silver thunder basket pencil orange meadow copper "
    "lantern harbor pillow rocket walnut velvet cactus marble"
)
VOWELS = "aeiou"


def tasks(word: str) -> Iterator[tuple[str, str]]:
    """Questions about one word, with their answers."""
    yield f"Spell '{word}' backwards.", word[::-1]
    yield f"How many letters does '{word}' have?", str(len(word))
    yield f"Which vowels does '{word}' have, in their order?", ", ".join(c for c in word if c in VOWELS)
    yield f"Write '{word}' in capital letters.", word.upper()


def main() -> None:
    """Write the file beside this one."""
    rows = [{"instruction": question, "output": answer} for word in WORDS.split() for question, answer in tasks(word)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (Path(__file__).parent / "word_tasks.jsonl").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
