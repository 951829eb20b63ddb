"""Writes the data of `grokking.yaml`: all sums of two numbers modulo a prime, three tenths of them held out.

A number is one character, so that a tokenizer of bytes makes one token of each.
"""

from __future__ import annotations

import json
import random
import string
from pathlib import Path

DIGITS = string.digits + string.ascii_letters
PRIME = 31
SHARE = 0.7
FOLDER = Path(__file__).parent


def row(first: int, second: int) -> str:
    """One sum as segments, of which the answer is trained."""
    asked, answer = f"{DIGITS[first]}+{DIGITS[second]}=", DIGITS[(first + second) % PRIME]
    return json.dumps({"segments": [{"label": False, "text": asked}, {"label": True, "text": answer}]}) + "\n"


def main(folder: Path = FOLDER) -> None:
    """Write both files into `folder`."""
    rows = [row(first, second) for first in range(PRIME) for second in range(PRIME)]
    random.Random(1).shuffle(rows)
    count = int(SHARE * len(rows))
    (folder / "modular_train.jsonl").write_text("".join(rows[:count]), encoding="utf-8")
    (folder / "modular_held_out.jsonl").write_text("".join(rows[count:]), encoding="utf-8")


if __name__ == "__main__":
    main()
