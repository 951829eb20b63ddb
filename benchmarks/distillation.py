"""The held-out loss of a student with a teacher and without, at equal steps, of equal rows and equal first weights.

The teacher is the model of `examples/quickstart.yaml`, trained on questions as well as answers. `examples/distill.yaml`
is then trained once for each way of learning and each seed: without a teacher, with the teacher in the process, and
with a recording of it (`dumbo teacher-logprobs`). Start it from the repository's root:

    python benchmarks/distillation.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dumbo.cli.main import main as dumbo

RESULT = Path(__file__).parent / "results" / "distillation.json"
CONFIG = "examples/distill.yaml"
TEACHER = (
    "datasets.0.train_format.train_on_inputs=true",
    "datasets.1.train_format.train_on_inputs=true",
    "plugins=[transformers, transformers_trainer, tokenizer_trainer, polars, jinja_formatter]",
)
"""How the quickstart becomes a teacher of whole texts; what asks for answers is left out."""
TOP_K = 16
WITHOUT, LIVE, RECORDED = "cross entropy alone", "teacher in the process", f"recorded, top {TOP_K}"
COLOURS = {WITHOUT: "#8a8d91", LIVE: "#1f6f8b", RECORDED: "#c9a227"}


def main(words: Sequence[str] | None = None) -> int:
    """Train, print, write the JSON file and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, help="the run of a teacher that is there (otherwise it is trained)")
    parser.add_argument("--teacher-steps", type=int, default=300, help="optimizer steps of the teacher (300)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="(1 2 3)")
    parser.add_argument("--steps", type=int, default=200, help="optimizer steps of a student (200)")
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON file; the plot goes beside it")
    options = parser.parse_args(words)
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        teacher = options.teacher or _train_teacher(Path(folder) / "teacher", options.teacher_steps)
        for seed in options.seeds:
            for way in (WITHOUT, LIVE, RECORDED):
                found = _train(way, seed, teacher / "model", Path(folder), options.steps)
                runs.append({"way": way, "seed": seed, "eval_loss": found})
                print(f"seed {seed}, {way}: {found[-1][1]:.4f}", flush=True)
            report = _report(runs, _held_out(teacher)[-1], options.steps)
            options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    _plot(report, options.output.with_suffix(".png"))
    step, loss = report["teacher"]
    print(f"the teacher, after {step} steps: {loss:.4f}\nmedians: after the last step, and where it was least")
    for way, loss in report["median_last"].items():
        print(f"{way:24} {loss:.4f} {report['median_best'][way]:.4f}")
    return 0


def _train_teacher(out: Path, steps: int) -> Path:
    """The folder of its run."""
    few = (f"trainer.arguments.max_steps={steps}", f"trainer.arguments.eval_steps={steps}")
    _insist(dumbo(["train", "examples/quickstart.yaml", f"trainer.output_dir={out}", *few, *TEACHER]))
    return out


def _train(way: str, seed: int, teacher: Path, folder: Path, steps: int) -> list[tuple[int, float]]:
    """(step, held-out loss) of a run."""
    out = folder / f"{way}-{seed}"
    words = [
        f"model.tokenizer.path={teacher}",
        f"trainer.kd.teacher.path={teacher}",
        f"trainer.arguments.max_steps={steps}",
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
            words += [
                f"trainer.kd.recorded.folder={folder / f'said-{seed}'}",
                f"trainer.kd.recorded.top_k={TOP_K}",
                "trainer.kd.outside=bucket",
            ]
            _insist(dumbo(["teacher-logprobs", CONFIG, *words]))
        _insist(dumbo(["train", CONFIG, *words]))
    return _held_out(out)


def _held_out(run: Path) -> list[tuple[int, float]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(row["step"], row["eval/loss"]) for row in rows if "eval/loss" in row]


def _insist(code: int) -> None:
    if code:
        raise SystemExit(code)


def _report(runs: list[dict[str, Any]], teacher: tuple[int, float], steps: int) -> dict[str, Any]:
    last, best = _medians(runs, lambda losses: losses[-1]), _medians(runs, min)
    return {"steps": steps, "teacher": teacher, "runs": runs, "median_last": last, "median_best": best}


def _medians(runs: Sequence[dict[str, Any]], of: Callable[[list[float]], float]) -> dict[str, float]:
    """The median over the seeds of one number of each curve."""
    return {
        way: statistics.median(of([loss for _, loss in run["eval_loss"]]) for run in runs if run["way"] == way)
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
    axis.axhline(report["teacher"][1], color="#444444", linewidth=0.8, linestyle=":", label="the teacher itself")
    axis.set_xlabel("optimizer step")
    axis.set_ylabel("held-out loss (cross entropy, nats per token)")
    axis.set_title("A student on 200 of the quickstart's rows; each line is a seed", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    raise SystemExit(main())
