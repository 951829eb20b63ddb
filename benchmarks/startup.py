"""How long commands take: `--help`, `dumbo check`, and a training from the command to its first step, beside peers.

Whole processes, by turns, beside a bare Python. A training starts from a folder with a tiny model with random weights
and a few conversations, with empty caches, and has made its first step when it tells the loss of it. TRL is measured
where it is installed beside dumbo; LLaMA-Factory and Axolotl have environments of their own (`benchmarks/README.md`):
name their Python with `--peer llamafactory=PYTHON --peer axolotl=PYTHON`, beside which their commands lie.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sft_peers
from sft_cases import TINY, Case, dumbo_config, write_case

RESULT = Path(__file__).parent / "results" / "startup.json"
ROWS = Path(__file__).parents[1] / "examples" / "plugin" / "rows.jsonl"
BASELINE = "python -c pass"
TOLD = re.compile(r"'loss'|step 1/")
"""What peers write of a step, and what dumbo does."""

RUN = f"""\
model:
  base_model: HuggingFaceTB/SmolLM2-135M
datasets:
  - path: {json.dumps(str(ROWS))}
    type: huggingface_polars
    data_format: alpaca
    train_format:
      type: jinja_messages
      template: "{{% for message in messages %}}{{{{ message.content }}}}{{% endfor %}}"
trainer:
  arguments: {{batch_size: 16, learning_rate: 1e-4}}
plugins: [transformers, transformers_trainer, polars, jinja_formatter]
"""


@dataclass(frozen=True)
class Program:
    """A command, timed to its end or to its first step."""

    command: Sequence[str]
    trains: bool = False


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", type=Path, help="the file to check; by default a small one of our own")
    parser.add_argument("--repeat", type=int, default=9, help="processes per command; of a training a third (9)")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help="another peer to measure")
    parser.add_argument("--output", type=Path, default=RESULT, help=f"where to write the result ({RESULT})")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        check = options.config or folder / "run.yaml"
        if not options.config:
            check.write_text(RUN, encoding="utf-8")
        scripts = {"trl": Path(sys.executable).parent}
        scripts |= {peer: Path(python).parent for peer, python in (named.split("=", 1) for named in options.peer)}
        programs = {**short_commands(check, scripts), **trainings(folder, scripts)}
        seconds = measure(programs, folder, options.repeat)
    print(table(seconds))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report(seconds), indent=2) + "\n", encoding="utf-8")
    plot(seconds, options.output.with_suffix(".png"))
    print(f"\nwritten to {options.output}")
    return 0


def short_commands(check: Path, scripts: Mapping[str, Path]) -> dict[str, Program]:
    """Commands that are timed to their end, by the names that the table shows. Peers that are not installed are left
    out."""
    dumbo = [sys.executable, "-m", "dumbo"]
    found = {BASELINE: Program([sys.executable, "-c", "pass"]), "dumbo --help": Program([*dumbo, "--help"])}
    found["dumbo train --help"] = Program([*dumbo, "train", "--help"])
    found["dumbo check"] = Program([*dumbo, "check", str(check)])
    peers = {
        "trl": ("trl --help", "trl sft --help"),
        "llamafactory": ("llamafactory-cli help", "llamafactory-cli train --help"),
        "axolotl": ("axolotl --help", "axolotl train --help"),
    }
    for peer, folder in scripts.items():
        for line in peers[peer]:
            name, *words = line.split()
            if script := shutil.which(name, path=str(folder)):
                found[line] = Program([script, *words])
    return found


def trainings(folder: Path, scripts: Mapping[str, Path]) -> dict[str, Program]:
    """Commands that train a tiny model for two steps; what they write goes to the folder that they are called in."""
    run = {**write_case(folder, Case("tiny", TINY, 128, 2, 2), None, gpu=False), "out": "out"}
    # The peers take all files beside a data file for parts of the data set.
    (folder / "rows").mkdir()
    rows = shutil.copy(run["rows"], folder / "rows")
    values = {"max_steps": 2, "logging_steps": 1, "model_name_or_path": run["model"], "dataset_name": Path(rows).parent}
    shared = {**sft_peers.shared(run), **values, "gradient_checkpointing": False, "max_length": run["length"]}
    configs: dict[str, Any] = {
        "dumbo": dumbo_config(run, clocked=False),
        "llamafactory": {**sft_peers.llamafactory_config(run, folder), "logging_steps": 1},
        "axolotl": {name: value for name, value in sft_peers.axolotl_config(run).items() if name != "plugins"},
    }
    configs["axolotl"]["logging_steps"] = 1
    files = {side: folder / f"{side}.yaml" for side in configs}
    for side, file in files.items():
        file.write_text(json.dumps(configs[side], indent=1), encoding="utf-8")
    found = {"dumbo train": Program([sys.executable, "-m", "dumbo", "train", str(files["dumbo"])], trains=True)}
    lines = {
        "trl": ("trl", "sft", *(word for name, value in shared.items() for word in (f"--{name}", str(value)))),
        "llamafactory": ("llamafactory-cli", "train", str(files["llamafactory"])),
        "axolotl": ("axolotl", "train", str(files["axolotl"]), "--launcher", "python"),
    }
    for peer, place in scripts.items():
        name, *words = lines[peer]
        if script := shutil.which(name, path=str(place)):
            found[f"{name} {words[0]}"] = Program([script, *words], trains=True)
    return found


def measure(programs: Mapping[str, Program], folder: Path, repeat: int) -> dict[str, list[float]]:
    """Seconds of `repeat` processes of each program, by turns, so that a busy moment hits all of them alike.

    One process of each goes before and is not counted: it reads the files from the disk and writes the byte code.
    """
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(repeat + 1):
        for name, program in programs.items():
            if program.trains and turn > max(1, repeat // 3):
                continue
            with tempfile.TemporaryDirectory(dir=folder) as place:
                took = time_process(program, place)
            if turn:
                seconds[name].append(took)
    return seconds


def time_process(program: Program, place: str) -> float:
    """Seconds from start to exit, or to the first step; its failure is ours. It runs in the folder `place`."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "AXOLOTL_DO_NOT_TRACK": "1",
        "DUMBO_CACHE": f"{place}/cache",
        "HF_DATASETS_CACHE": f"{place}/datasets",
    }
    if program.trains:
        environment["PYTHONUNBUFFERED"] = "1"  # else a pipe has the peers' lines at the end
    start = time.perf_counter()
    process = subprocess.Popen(
        program.command,
        env=environment,
        cwd=place,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    said, took = [], 0.0
    for line in lines_of(process):
        said.append(line)
        if program.trains and not took and TOLD.search(line):
            took = time.perf_counter() - start
    ended = time.perf_counter() - start
    if process.wait() or (program.trains and not took):
        raise SystemExit(f"{' '.join(program.command)} failed:\n" + "".join(said[-20:]))
    return took or ended


def lines_of(process: subprocess.Popen[str]) -> Iterator[str]:
    """What it writes."""
    assert process.stdout is not None
    yield from process.stdout


def table(seconds: Mapping[str, Sequence[float]]) -> str:
    """The medians as text, each also as a multiple of the bare Python."""
    bare = statistics.median(seconds[BASELINE])
    lines = [f"{'command':30} {'median':>9} {'fastest':>9} {'x python':>9}"]
    for name, values in seconds.items():
        median = statistics.median(values)
        lines.append(f"{name:30} {median:8.3f}s {min(values):8.3f}s {median / bare:9.1f}")
    return "\n".join(lines)


def report(seconds: Mapping[str, Sequence[float]]) -> dict[str, object]:
    """Medians, every measured value, and what they were measured on."""
    return {
        "benchmark": "startup",
        "unit": "seconds",
        "median": {name: round(statistics.median(values), 4) for name, values in seconds.items()},
        "values": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def plot(seconds: Mapping[str, Sequence[float]], file: Path) -> None:
    """Bars of the medians, with every measured value as a dot."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = list(seconds)[::-1]
    figure, axis = plt.subplots(figsize=(9, 0.38 * len(names) + 1.2), layout="constrained")
    medians = [statistics.median(seconds[name]) for name in names]
    colours = ["#1f6f8b" if name.startswith("dumbo") else "#c9a227" for name in names]
    bars = axis.barh(names, medians, color=colours)
    axis.bar_label(bars, fmt="%.2f s", fontsize=8, padding=6)
    for place, name in enumerate(names):
        axis.plot(seconds[name], [place] * len(seconds[name]), ".", color="black", markersize=3)
    axis.set_title("Seconds to the end; of a training, to its first step", fontsize=10)
    axis.margins(x=0.1)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    raise SystemExit(main())
