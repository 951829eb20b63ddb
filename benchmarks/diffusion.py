"""How often a diffusion model fills in masked words rightly, beside what is right without looking at the text.

    dumbo examples/diffusion.yaml
    python benchmarks/diffusion.py runs/diffusion

Of every held-out row of the quickstart a share of the answer's words is masked and filled in, the surest first. Chance
is the share that the most frequent masked word has: who always says it is right so often.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

from dumbo.inference.generate import Sampling
from dumbo.inference.opening import open_model

ROWS = Path(__file__).parents[1] / "examples" / "data" / "quickstart_held_out.jsonl"
SHARES = (0.25, 0.5, 0.75, 1.0)


def answer_places(tokenizer: Any, row: dict[str, str]) -> tuple[list[int], list[int]]:
    """The row's token ids, as it is trained, and the places of its answer."""
    prompt = tokenizer(f"{row['instruction']} =")["input_ids"]
    ids = tokenizer(f"{row['instruction']} = {row['output']}")["input_ids"]
    return ids, list(range(len(prompt), len(ids)))


def infilling(generator: Any, rows: list[dict[str, str]], share: float) -> dict[str, float]:
    """Of the masked tokens, and of the rows, how many are filled in rightly."""
    draw = random.Random(0)
    texts, masked = [], []
    for row in rows:
        ids, places = answer_places(generator.tokenizer, row)
        chosen = set(draw.sample(places, max(1, round(share * len(places)))))
        texts.append(ids)
        masked.append([place in chosen for place in range(len(ids))])
    made = generator.infill(texts, masked, Sampling())
    right, total, whole, hidden = 0, 0, 0, Counter()
    for ids, places, row in zip(texts, masked, made.tolist(), strict=True):
        answers = [(ids[i], row[i]) for i in range(len(ids)) if places[i]]
        hits = sum(a == b for a, b in answers)
        right, total, whole = right + hits, total + len(answers), whole + (hits == len(answers))
        hidden.update(a for a, _ in answers)
    return {
        "masked": total,
        "right": round(right / total, 4),
        "chance": round(hidden.most_common(1)[0][1] / total, 4),
        "rows_right": round(whole / len(texts), 4),
    }


def main() -> None:
    """Measure the model of a run, print a table, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    opened = open_model(options.run)
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    found = {str(share): infilling(opened.generator, rows, share) for share in SHARES}
    print("masked  tokens  right  chance  whole answers right")
    for share, result in found.items():
        print(
            f"{float(share):6.0%}  {result['masked']:6}  {result['right']:5.0%}  {result['chance']:6.0%}"
            f"  {result['rows_right']:19.0%}"
        )
    if options.json:
        options.json.write_text(json.dumps({"run": options.run.name, "infilling": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
