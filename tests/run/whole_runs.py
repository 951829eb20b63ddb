"""Runs started in this process through the command line, and what they leave in their folder."""

import json
from pathlib import Path

from dumbo.cli.main import main
from tests import builders

LEFT = ["loss.png", "metrics.jsonl", "model", "report.html", "run.yaml", "summary.json"]
"""What a run has in its folder at the end."""
SHIPPED = ["transformers", "transformers_trainer", "polars", "jinja_formatter"]


def metrics_of(folder: Path, *, timing: bool = False) -> list[dict]:
    """The lines of `metrics.jsonl`, without those that depend on the machine's speed."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return rows if timing else [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in rows]


def losses_of(folder: Path, path: str = "train/loss") -> list[float]:
    """One metric, step after step."""
    return [row[path] for row in metrics_of(folder) if path in row]


def weights_of(folder: Path) -> dict:
    """The saved tensors by name."""
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def printed_by(capsys, code: int, *words: str):
    """What the command line printed, on its own: it ended with `code`, and without a traceback."""
    capsys.readouterr()
    got = main(list(words))
    printed = capsys.readouterr()
    assert got == code, printed.out + printed.err
    assert "Traceback" not in printed.err
    return printed


def run_here(file: Path, *words: str) -> Path:
    """Train `file`, made by `builders.write_config`, in this process; return the run's folder."""
    assert main(["train", str(file), *words]) == 0
    return file.parent / "out"


def write_and_run(folder: Path, model: Path, rows: Path, changes: dict | None = None) -> Path:
    """Write a configuration with `changes` into `folder` and train it; return the run's folder."""
    return run_here(builders.write_config(folder, model, rows, changes))
