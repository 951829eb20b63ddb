"""How long `dumbo --help` and `dumbo check` take as whole processes, beside a bare Python and TRL in the same run."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

RESULT = Path(__file__).parent / "results" / "startup.json"
ROWS = Path(__file__).parents[1] / "examples" / "plugin" / "rows.jsonl"
BASELINE = "python -c pass"

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


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", nargs="?", type=Path, help="the file to check; by default a small one of our own")
    parser.add_argument("--repeat", type=int, default=9, help="processes per command (9)")
    parser.add_argument("--output", type=Path, default=RESULT, help=f"where to write the result ({RESULT})")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        run = options.config or Path(folder) / "run.yaml"
        if not options.config:
            run.write_text(RUN, encoding="utf-8")
        seconds = measure(commands(run), options.repeat)
    print(table(seconds))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report(seconds), indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten to {options.output}")
    return 0


def commands(run: Path) -> dict[str, list[str]]:
    """What is measured, by the name that the table shows. Peers that are not installed are left out."""
    scripts = Path(sys.executable).parent
    dumbo = [sys.executable, "-m", "dumbo"]
    found = {BASELINE: [sys.executable, "-c", "pass"], "dumbo --help": [*dumbo, "--help"]}
    found["dumbo check"] = [*dumbo, "check", str(run)]
    if trl := shutil.which("trl", path=str(scripts)):
        found["trl --help"] = [trl, "--help"]
    return found


def measure(programs: Mapping[str, Sequence[str]], repeat: int) -> dict[str, list[float]]:
    """Seconds of `repeat` processes of each program, by turns, so that a busy moment hits all of them alike.

    One process of each goes before and is not counted: it reads the files from the disk and writes the byte code.
    """
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for turn in range(repeat + 1):
        for name, command in programs.items():
            took = time_process(command)
            if turn:
                seconds[name].append(took)
    return seconds


def time_process(command: Sequence[str]) -> float:
    """Seconds from start to exit of one process; its output is thrown away, and its failure is ours."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def table(seconds: Mapping[str, Sequence[float]]) -> str:
    """The medians as text, each also as a multiple of the bare Python."""
    bare = statistics.median(seconds[BASELINE])
    lines = [f"{'command':16} {'median':>9} {'fastest':>9} {'x python':>9}"]
    for name, values in seconds.items():
        median = statistics.median(values)
        lines.append(f"{name:16} {median:8.3f}s {min(values):8.3f}s {median / bare:9.1f}")
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


if __name__ == "__main__":
    raise SystemExit(main())
