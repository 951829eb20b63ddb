"""How often a diffusion model fills in masked words rightly, beside what is right without looking at the text.

    dumbo examples/diffusion.yaml
    python benchmarks/diffusion.py runs/diffusion
    python benchmarks/diffusion.py

Of every held-out row of the quickstart a share of the answer's words is masked and filled in, the surest first. Chance
is the share that the most frequent masked word has: who always says it is right so often.

The result is written as JSON, with a picture beside it; without a run the picture is made anew of the JSON file.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dumbo.inference.generate import Sampling
from dumbo.inference.opening import open_model

RESULT = Path(__file__).parent / "results" / "diffusion.json"
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
    """Measure the model of a run, print a table, and write it as JSON, with a picture of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="the run's folder; without one, only the picture is made")
    parser.add_argument("--output", type=Path, default=RESULT, help=f"the result, to write or to draw ({RESULT})")
    options = parser.parse_args()
    if options.run is not None:
        report = {"run": options.run.name, "infilling": measure(options.run)}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    found = json.loads(options.output.read_text(encoding="utf-8"))["infilling"]
    plot(found, options.output.with_suffix(".png"))


def measure(run: Path) -> dict[str, dict[str, float]]:
    """The numbers of every share, which are printed too."""
    opened = open_model(run)
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    found = {str(share): infilling(opened.generator, rows, share) for share in SHARES}
    print("masked  tokens  right  chance  whole answers right")
    for share, result in found.items():
        print(
            f"{float(share):6.0%}  {result['masked']:6}  {result['right']:5.0%}  {result['chance']:6.0%}"
            f"  {result['rows_right']:19.0%}"
        )
    return found


def plot(found: Mapping[str, Mapping[str, float]], file: Path) -> None:
    """Masked words that are filled in rightly, beside chance, for every share that is masked."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    sides = (("right", "diffusion model", "#0a66b0", -0.2), ("chance", "the most frequent word", "#8a94a0", 0.2))
    for name, label, colour, shift in sides:
        heights = [result[name] for result in found.values()]
        bars = axis.bar([place + shift for place in range(len(found))], heights, 0.4, color=colour, label=label)
        axis.bar_label(bars, [f"{height:.0%}" for height in heights], padding=2)
    axis.set_xticks(range(len(found)), [f"{float(share):.0%}" for share in found])
    axis.set_xlabel("masked share of a held-out answer")
    axis.set_ylabel("masked words filled in rightly")
    axis.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1))
    axis.set_ylim(0, 1)
    axis.legend(frameon=False, loc="upper right")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
