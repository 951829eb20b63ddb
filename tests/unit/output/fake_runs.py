"""Folders as runs leave them, written without training anything."""

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml

CONFIG: dict[str, Any] = {
    "model": {
        "architecture": {"model_type": "llama", "hidden_size": 128},
        "tokenizer": {"pad_token": "<|pad|>", "eos_token": "<|im_end|>"},
        "hub_token": "hf_abcdefghijklmnopqrstuvwxyz",
    },
    "datasets": [
        {
            "path": "data/train.jsonl",
            "type": "huggingface_polars",
            "data_format": {"type": "alpaca", "prompt": "plain"},
            "train_format": {
                "type": "jinja_messages",
                "template": "Question: {{ messages[0].content }}\nAnswer: {{ messages[1].content }}",
                "train_on_inputs": False,
            },
        }
    ],
    "trainer": {
        "arguments": {
            "batch_size": 32,
            "physical_batch_size": 8,
            "learning_rate": 2e-3,
            "num_train_epochs": 3,
            "weight_decay": 0.0,
            "lr_scheduler_type": "cosine",
            "warmup_steps": 0.05,
            "logging_steps": 1,
        },
        "data": {"val_set_size": 128},
        "output_dir": "runs/quickstart",
        "seed": 42,
    },
    "plugins": ["transformers", "transformers_trainer", "polars", "jinja_formatter"],
}

PROMPTS = (
    ("What is 17 + 25?", "42"),
    ("Spell 'river' backwards.", "revir"),
    ("How many letters does 'apple' have?", "5"),
    ("Write a line about <script>alert('x')</script> & \"quotes\".", "Scripts & quotes: <b>bold</b>"),
)


def metrics_rows(steps: int = 900, every: int = 1, seed: int = 0, floor: float = 0.4) -> list[dict[str, float]]:
    """A loss that falls with noise, a warmed-up cosine, gradient norms with a spike, an evaluation every tenth."""
    chance = random.Random(seed)
    rows: list[dict[str, float]] = []
    for step in [1, *range(every, steps + 1, every)]:
        if rows and step == rows[-1]["step"]:
            continue
        done = step / steps
        warm = min(1.0, done / 0.05)
        loss = floor + 4.2 * math.exp(-5 * done) + chance.gauss(0, 0.12)
        spike = 14.0 if 0.4 < done < 0.4 + every / steps * 1.5 else 0.0
        rows.append(
            {
                "step": step,
                "train/loss": max(0.05, loss) + spike / 8,
                "train/learning_rate": 2e-3 * warm * 0.5 * (1 + math.cos(math.pi * done)),
                "train/grad_norm": abs(0.6 + math.exp(-4 * done) + chance.gauss(0, 0.2)) + spike,
                "train/epoch": 3 * done,
                "perf/tokens_per_second": 31000 + chance.gauss(0, 1500),
            }
        )
        if step % max(1, steps // 10) < every and step >= steps // 10:
            right = min(0.97, max(0.0, 1.2 * done - 0.2))
            rows.append({"step": step, "eval/loss": floor + 0.1 + 4 * math.exp(-5 * done), "eval/exact_match": right})
    return rows


def sample_rows(last: int = 900, between: int = 3) -> list[dict[str, Any]]:
    """What a model wrote for `PROMPTS`: nonsense first, mostly right at the end."""
    rows = []
    for part in range(between + 2):
        step = round(last * part / (between + 1))
        for index, (prompt, reference) in enumerate(PROMPTS):
            right = part > between or (part > 1 and index == 0)
            output = reference if right and index != 2 else "the the of" if part == 0 else f"{reference[:2]} …"
            rows.append({"step": step, "prompt": prompt, "reference": reference, "output": output})
    return rows


def summary_of(folder: Path, outcome: str = "finished", steps: int = 900, total: int = 900) -> dict[str, Any]:
    """The facts of a run."""
    return {
        "name": folder.name,
        "outcome": outcome,
        "config_file": "examples/quickstart.yaml",
        "started": "2026-11-21T05:30:00Z",
        "seconds": 171.2,
        "steps": steps,
        "total_steps": total,
        "versions": {"dumbo": "0.1.0", "python": "3.11.7", "torch": "2.13.0+cpu", "transformers": "5.23.0"},
        "machine": {"system": "Linux 6.1 x86_64", "cpu_cores": 2, "devices": ["CPU"]},
        "plugins": ["transformers", "transformers_trainer", "polars", "jinja_formatter"],
        "data": [
            {"source": "data/train.jsonl", "rows": 4000, "tokens": 90321, "trained": 41022, "held_out": 128}
            | {"bad": 3, "too_long": 0, "emptied": 0},
            {"source": "data/more.jsonl", "rows": 500, "tokens": 11210, "trained": 5333, "held_out": 0}
            | {"bad": 0, "too_long": 0, "emptied": 0},
        ],
        "parameters": [
            {"part": "embeddings", "trainable": 131072, "frozen": 0},
            {"part": "attention", "trainable": 262144, "frozen": 0},
            {"part": "feed-forward", "trainable": 786432, "frozen": 0},
        ],
        "chosen": {
            "device": "cpu",
            "compute": "float32",
            "attention": "sdpa",
            "gradient_checkpointing": "off (activations need about 212 MiB, which fit)",
        },
        "model": str(folder / "model"),
        "lora": {"rank": 16, "targets": ["q_proj", "v_proj"]},
    }


def write_lines(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_fake_run(
    folder: Path,
    *,
    rows: list[dict[str, float]] | None = None,
    samples: list[dict[str, Any]] | None = None,
    config: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """Write a run into `folder`; `changes` go over its `summary.json`. None for a part means a usual one."""
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / "metrics.jsonl", metrics_rows() if rows is None else rows)
    write_lines(folder / "samples.jsonl", sample_rows() if samples is None else samples)
    (folder / "run.yaml").write_text(yaml.safe_dump(config or CONFIG, sort_keys=False), encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps({**summary_of(folder), **changes}), encoding="utf-8")
    if changes.get("outcome", "finished") == "finished":
        (folder / "model").mkdir(exist_ok=True)
    return folder
