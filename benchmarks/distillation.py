"""The held-out loss of a student with a teacher and without, at equal steps, of equal rows and equal first weights.

`examples/distill.yaml` is trained once for each way of learning and each seed: without a teacher, with the teacher in
the process, and with a recording of it (`dumbo teacher-logprobs`). The teacher is the quickstart's model.

    make quickstart
    python benchmarks/distillation.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dumbo.cli.main import main as dumbo

RESULT = Path(__file__).parent / "results" / "distillation.json"
CONFIG = "examples/distill.yaml"
WITHOUT, LIVE, RECORDED = "cross entropy alone", "teacher in the process", "recorded, top 8"
COLOURS = {WITHOUT: "#8a8d91", LIVE: "#1f6f8b", RECORDED: "#c9a227"}


def main(words: Sequence[str] | None = None) -> int:
    """Train, print, write the JSON file and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="runs/quickstart/model", help="the quickstart's model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="(1 2 3)")
    parser.add_argument("--steps", type=int, default=300, help="optimizer steps (300)")
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file; the plot goes beside it")
    options = parser.parse_args(words)
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            for way in (WITHOUT, LIVE, RECORDED):
                runs.append({"way": way, "seed": seed, "eval_loss": _train(way, seed, Path(folder), options)})
                print(f"seed {seed}, {way}: {runs[-1]['eval_loss'][-1][1]:.4f}", flush=True)
    report = {"steps": options.steps, "runs": runs, "median": _medians(runs)}
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    _plot(report, options.output.with_suffix(".png"))
    for way, loss in report["median"].items():
        print(f"{way:24} {loss:.4f}")
    return 0


def _train(way: str, seed: int, folder: Path, options: argparse.Namespace) -> list[tuple[int, float]]:
    """(step, held-out loss) of a run."""
    out = folder / f"{way}-{seed}"
    words = [
        f"model.tokenizer.path={options.teacher}",
        f"trainer.kd.teacher.path={options.teacher}",
        f"trainer.arguments.max_steps={options.steps}",
        f"trainer.seed={seed}",
        f"trainer.output_dir={out}",
    ]
    if way == WITHOUT:
        plain = Path(CONFIG).read_text(encoding="utf-8").replace(", kd]", "]")
        start, end = plain.index("  kd:\n"), plain.index("  arguments:\n")
        config = folder / "plain.yaml"
        config.write_text(plain[:start] + plain[end:], encoding="utf-8")
        _insist(dumbo(["train", str(config), words[0], *words[2:]]))
    else:
        if way == RECORDED:
            words += [f"trainer.kd.recorded.folder={folder / f'said-{seed}'}", "trainer.kd.recorded.top_k=8"]
            _insist(dumbo(["teacher-logprobs", CONFIG, *words]))
        _insist(dumbo(["train", CONFIG, *words]))
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(row["step"], row["eval/loss"]) for row in rows if "eval/loss" in row]


def _insist(code: int) -> None:
    if code:
        raise SystemExit(code)


def _medians(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The median over the seeds of the last held-out loss."""
    return {
        way: statistics.median(run["eval_loss"][-1][1] for run in runs if run["way"] == way)
        for way in dict.fromkeys(run["way"] for run in runs)
    }


def _plot(report: dict[str, Any], file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    for run in report["runs"]:
        first = run["seed"] == report["runs"][0]["seed"]
        steps, losses = zip(*run["eval_loss"], strict=True)
        axis.plot(steps, losses, color=COLOURS[run["way"]], alpha=0.8, label=run["way"] if first else None)
    axis.set_xlabel("optimizer step")
    axis.set_ylabel("held-out loss (cross entropy, nats per token)")
    axis.set_title("A student on 200 of the quickstart's rows; each line is a seed", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    raise SystemExit(main())
