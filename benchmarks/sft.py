"""Whole trainings side by side: dumbo, a loop without a framework, TRL, LLaMA-Factory, Axolotl.

Each measurement is a process of its own, by turns: `dumbo train` as users call it, the others as `sft_bare.py` and
`sft_peers.py` say. All start from the same folder with random weights and the same JSONL file of conversations, train
on what the assistant says, with the same batch, learning rate, AdamW, schedule, clipping and precision (float32 on a
CPU), on one thread (`OMP_NUM_THREADS=1`), without activation checkpointing. The loop gets the batches that dumbo's
first run made, and dumbo's attention where rows are packed: it is the limit of what a framework can reach.

Cases: `full` (Llama of 7.4 M parameters, 2 x 512 tokens a step; every row has 512 tokens, so nobody pads), `lora` (the
same with rank 16 on all linear layers), `vocabulary` (128,256 tokens, 2 x 1,024), `chat` (conversations as long as real
ones in packed sequences of 1,024, one epoch; each side packs in its own way, and cuts or drops or splits what is too
long). `--set gpu` has 1 B and 8 B shapes instead.

A step lasts from the end of one optimizer update to the end of the next. Tokens are those that are no padding. Rates
are medians over the steps but the first two; memory is the most that the process had until the training ended; the
first step is counted from the command; outside are the shares of a step before the forward pass, between backward
pass and update, and after it (data, clipping, schedule, logs, callbacks).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import sft_peers
from sft_cases import SETS, Case, dumbo_config, write_case
from sft_plot import plot

RESULT = Path(__file__).parent / "results" / "sft.json"
LEFT_OUT = 2
"""Steps at the beginning that are slower than the others."""
RATES = ("tokens_per_second", "supervised_per_second", "tokens_per_cpu_second", "memory_mib", "first_step_seconds")


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, write the JSON file and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, default="cpu", help="which cases: for a CPU, or one GPU, or tiny (cpu)")
    parser.add_argument("--case", action="append", metavar="NAME", help="only this one; can be given again")
    parser.add_argument("--steps", type=int, help="steps of each training, instead of the case's own")
    parser.add_argument("--repeat", type=int, default=3, help="measurements of each, by turns (3)")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help="another peer to measure")
    parser.add_argument("--output", type=Path, default=RESULT, help=f"where to write the result ({RESULT})")
    options = parser.parse_args(words)
    cases = [case for case in SETS[options.set] if not options.case or case.name in options.case]
    if not cases:
        parser.error(f"--case: known are {', '.join(case.name for case in SETS[options.set])}")
    peers = {"trl": sys.executable} if find_spec("trl") else {}
    peers |= dict(peer.split("=", 1) for peer in options.peer)
    with tempfile.TemporaryDirectory() as name:
        gpu = options.set == "gpu"
        runs = {case.name: write_case(Path(name), case, options.steps, gpu) for case in cases}
        results = list(measure(Path(name), cases, runs, options.repeat, peers))
    report = summary(results, runs)
    if options.set != "cpu":
        add_utilisation(report, runs)
    print(table(report))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    plot(report, options.output.with_suffix(".png"))
    print(f"\nwritten to {options.output}")
    return 0


def measure(
    folder: Path, cases: Sequence[Case], runs: Mapping[str, Mapping[str, Any]], repeat: int, peers: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """Each case by each side, by turns; dumbo comes first, as its batches are the loop's."""
    for turn in range(repeat):
        for case in cases:
            for side in ("dumbo", "bare loop", *peers):
                place = folder / f"{case.name}-{side.replace(' ', '-')}-{turn}"
                found = measure_one(place, side, runs[case.name], peers)
                if isinstance(found, str):
                    print(f"{case.name} {side}: failed\n{found}", flush=True)
                    yield {"case": case.name, "side": side, "failed": found.splitlines()[-1]}
                    continue
                rates = summed_up(found)
                print(f"{case.name} {side}: {rates['tokens_per_second']:,.0f} tokens/s", flush=True)
                yield {"case": case.name, "side": side, **rates}


def measure_one(place: Path, side: str, run: Mapping[str, Any], peers: Mapping[str, str]) -> dict[str, Any] | str:
    """What the clock found in a process of its own, or the end of what the process said before it failed."""
    place.mkdir()
    file, clock, log = place / "run.json", place / "clock.json", place / "log.txt"
    file.write_text(json.dumps({**run, "out": str(place / "out")}), encoding="utf-8")
    beside = str(Path(__file__).parent)
    ours = side in ("dumbo", "bare loop")
    environment = os.environ | {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "PYTHONPATH": os.pathsep.join(filter(None, (beside, os.environ.get("PYTHONPATH") if ours else None))),
        "DUMBO_CACHE": str(place / "cache"),
        "HF_DATASETS_CACHE": str(place / "datasets"),
        "HF_HUB_OFFLINE": "1",
        "AXOLOTL_DO_NOT_TRACK": "1",
        "SFT_CLOCK": str(clock),
    }
    if side == "dumbo" and not Path(run["batches"]).exists():
        environment["SFT_BATCHES"] = run["batches"]
    command = command_of(side, file, peers)
    with log.open("w", encoding="utf-8") as stream:
        environment["SFT_BEGAN"] = repr(time.time())
        done = subprocess.run(
            command, env=environment, cwd=place, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL
        )
    if done.returncode or not clock.exists():
        said = log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:]
        return "\n".join(said) or f"exit code {done.returncode}"
    found: dict[str, Any] = json.loads(clock.read_text(encoding="utf-8"))
    return found


def command_of(side: str, file: Path, peers: Mapping[str, str]) -> list[str]:
    """The command of a side for the run in `file`."""
    if side == "dumbo":
        config = file.with_name("dumbo.yaml")
        run = json.loads(file.read_text(encoding="utf-8"))
        config.write_text(json.dumps(dumbo_config(run), indent=1), encoding="utf-8")
        return [sys.executable, "-m", "dumbo", "train", str(config)]
    if side == "bare loop":
        return [sys.executable, str(Path(__file__).with_name("sft_bare.py")), str(file)]
    return sft_peers.command(side, peers[side], file)


def summed_up(found: Mapping[str, Any]) -> dict[str, Any]:
    """Rates and shares of one training."""
    steps = found["steps"]
    counted = steps[LEFT_OUT:] or steps

    def median(of: str, by: str) -> float:
        return statistics.median(step[of] / step[by] for step in counted)

    positions = sum(step["positions"] for step in steps)
    tokens = sum(step["tokens"] for step in steps)
    values = {
        "tokens_per_second": median("tokens", "wall_seconds"),
        "supervised_per_second": median("supervised", "wall_seconds"),
        "tokens_per_cpu_second": median("tokens", "cpu_seconds"),
        "step_seconds": statistics.median(step["wall_seconds"] for step in counted),
        "outside_share": 1 - median("inside_seconds", "wall_seconds"),
        "padding_share": 1 - tokens / positions,
        "steps": len(steps),
        "tokens": tokens,
        "supervised": sum(step["supervised"] for step in steps),
        **{name: value for name, value in found.items() if name != "steps"},
    }
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}


def summary(results: Sequence[Mapping[str, Any]], runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Medians, ratios, every measured value, and what they were measured on."""
    medians: dict[str, dict[str, dict[str, float]]] = {case: {} for case in runs}
    for case, side in dict.fromkeys((result["case"], result["side"]) for result in results):
        ours = [result for result in results if (result["case"], result["side"]) == (case, side)]
        if good := [result for result in ours if "failed" not in result]:
            names = [name for name in good[0] if name not in ("case", "side")]
            median = {name: statistics.median(result[name] for result in good) for name in names}
            median["share_of_data"] = round(median["tokens"] / runs[case]["rows_have"]["tokens"], 4)
            medians[case][side] = median
    ratios = {
        case: {
            side: {name: round(of["dumbo"][name] / values[name], 3) for name in RATES}
            for side, values in of.items()
            if side != "dumbo" and "dumbo" in of
        }
        for case, of in medians.items()
    }
    return {
        "benchmark": "sft",
        "cases": {name: {key: run[key] for key in SHOWN} for name, run in runs.items()},
        "dumbo_to": ratios,
        "median": medians,
        "values": list(results),
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate", "peft")},
        "threads": os.environ.get("OMP_NUM_THREADS", "1"),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def add_utilisation(report: dict[str, Any], runs: Mapping[str, Mapping[str, Any]]) -> None:
    """Beside each speed, what share it is of the products of matrices that this machine does in the same time."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("gpu_ceiling.py"))], stdout=subprocess.PIPE, text=True, check=True
    )
    report |= json.loads(done.stdout)
    sides = [(case, values) for case, of in report["median"].items() for values in of.values()]
    for case, values in sides + [(value["case"], value) for value in report["values"] if "failed" not in value]:
        speed = values["tokens_per_second"] * runs[case]["flops_per_token"]
        values["utilisation"] = round(speed / report["matmul_tflops"] / 1e12, 4)


SHOWN = ("rows_have", "length", "batch", "lora", "packed", "dtype")


def table(report: Mapping[str, Any]) -> str:
    """The medians as text."""
    lines = []
    for case, of in report["median"].items():
        lines.append(f"\n{case:30} " + " ".join(f"{side:>13}" for side in of))
        for name in next(iter(of.values()), ()):
            cells = [values.get(name, float("nan")) for values in of.values()]
            digits = 0 if max(cells) > 100 else 3
            lines.append(f"{name.replace('_', ' '):30} " + " ".join(f"{cell:13,.{digits}f}" for cell in cells))
        for side, ratios in report["dumbo_to"][case].items():
            shown = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in ratios.items())
            lines.append(f"dumbo / {side}: {shown}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
