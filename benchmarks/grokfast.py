"""How many optimizer steps the example `grokking.yaml` takes to generalise: as it is, without its plugin, and without
it at the learning rate that comes to the same where gradients do not change.

Whole runs of dumbo on the CPU, one for each side and seed, with the same rows, model, order and optimizer. What counts
is the first evaluation at which 95 % of the held-out sums are right; a run that is there ends soon after.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
RESULT = Path(__file__).parent / "results" / "grokfast.json"
GOAL = 0.95
SIDES = {
    "without": "without Grokfast",
    "faster": "without, (1 + lamb) times the learning rate",
    "ema": "Grokfast, ema",
    "ma": "Grokfast, ma",
}
"""What is compared, and how a plot calls it. The example has the options of `ema`."""
COLOURS = {"without": "#8a94a0", "faster": "#d9b44a", "ema": "#0a66b0", "ma": "#c44e00"}
STOPPER = '''
from dumbo.plugin_loader import CallbackPlugin


class EnoughPlugin(CallbackPlugin):
    """Ends the run two evaluations after it has reached its goal."""

    def get_callbacks(self, config):
        from transformers import TrainerCallback

        class Enough(TrainerCallback):
            good = 0

            def on_evaluate(self, args, state, control, metrics, **more):
                self.good += metrics["eval_exact_match"] >= %s
                control.should_training_stop = self.good > 2

        return [Enough()]
'''


def main(words: Sequence[str] | None = None) -> int:
    """Train, print, write the JSON file and the picture beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=15000, help="the most that a run may take (15000)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each side (3)")
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=["without", "faster", "ema"])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for all runs, before what the example says")
    parser.add_argument("--output", type=Path, default=RESULT, help=f"where to write the result ({RESULT})")
    options = parser.parse_intermixed_args(words)
    values = []
    with tempfile.TemporaryDirectory() as name:
        for seed in range(1, options.seeds + 1):
            for side in options.sides:
                values.append(measure(side, seed, options.steps, options.overrides, Path(name) / f"{side}-{seed}"))
                print(f"{side}, seed {seed}: {values[-1]['reached'] or 'not reached'}", flush=True)
    report = {
        "goal": GOAL,
        "most_steps": options.steps,
        "overrides": options.overrides,
        "machine": f"{platform.machine()}, CPU",
        "versions": {package: version(package) for package in ("torch", "transformers")},
        "steps_to_goal": summary(values, options.sides),
        "values": values,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    plot(values, options.output.with_suffix(".png"))
    print(json.dumps(report["steps_to_goal"], indent=1))
    return 0


def measure(side: str, seed: int, steps: int, overrides: Sequence[str], folder: Path) -> dict[str, Any]:
    """One run; the steps and shares of its evaluations, and the first step at the goal."""
    folder.mkdir(parents=True)
    config = yaml.safe_load((ROOT / "examples" / "grokking.yaml").read_text(encoding="utf-8"))
    trainer, plugins = config["trainer"], config["plugins"]
    if side in ("without", "faster"):
        factor = 1 + trainer.pop("grokfast")["lamb"] if side == "faster" else 1
        trainer["arguments"]["learning_rate"] *= factor
        trainer.pop("grokfast", None)
        plugins.remove("grokfast")
    elif side == "ma":
        trainer["grokfast"] = {"filter": "ma"}
    trainer |= {"output_dir": str(folder / "out"), "seed": seed}
    trainer["arguments"] |= {"max_steps": steps, "use_cpu": True}
    (folder / "enough.py").write_text(STOPPER % GOAL, encoding="utf-8")
    plugins.append(f"{folder / 'enough.py'}:EnoughPlugin")
    (folder / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "-m", "dumbo", str(folder / "run.yaml"), *overrides]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    lines = (folder / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    held_out = [(row["step"], row["eval/exact_match"]) for row in rows if "eval/exact_match" in row]
    losses = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
    reached = next((step for step, share in held_out if share >= GOAL), None)
    ran = yaml.safe_load((folder / "out" / "run.yaml").read_text(encoding="utf-8"))["trainer"]
    settings = {"grokfast": ran.get("grokfast"), "learning_rate": ran["arguments"]["learning_rate"]}
    return {"side": side, "seed": seed, **settings, "reached": reached, "held_out": held_out, "train_loss": losses}


def summary(values: Sequence[Mapping[str, Any]], sides: Sequence[str]) -> dict[str, Any]:
    """The median of the steps of each side, and how many times those of the plugin a run without it takes; what was
    not reached counts as nothing known."""
    found: dict[str, Any] = {}
    for side in sides:
        steps = [value["reached"] for value in values if value["side"] == side]
        found[side] = None if None in steps else statistics.median(steps)
    for side in sides:
        if side in ("ema", "ma") and found.get("without") and found[side]:
            found[f"without / {side}"] = round(found["without"] / found[side], 2)
    return found


def plot(values: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Held-out answers that are right, and the loss of the training, over the steps."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, figsize=(8, 6), sharex=True, layout="constrained")
    seen: set[str] = set()
    for value in values:
        side = value["side"]
        label = SIDES[side] if side not in seen else None
        seen.add(side)
        style = {"color": COLOURS[side], "linewidth": 1.5, "label": label}
        above.plot(*zip(*value["held_out"], strict=True), **style)
        below.plot(*zip(*value["train_loss"], strict=True), **style)
        if value["reached"] is not None:
            above.axvline(value["reached"], color=COLOURS[side], linestyle=":", linewidth=1)
    above.axhline(GOAL, color="#c3c9d0", linewidth=0.8)
    above.set_ylabel("held-out sums that are right")
    below.set_ylabel("training loss")
    below.set_yscale("log")
    below.set_xlabel("optimizer step")
    above.legend(frameon=False)
    for axis in (above, below):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())
