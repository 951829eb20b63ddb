"""How long a training waits for each of its checkpoints: dumbo in the background and at once, Transformers' Trainer.

The same model, rows, optimizer and steps, by turns, each in a process of its own. What dumbo writes holds besides the
sums behind the logged loss, the states of plugins and a manifest, and is on the disk, with a digest for every file,
when it gets its name; Transformers leaves the time of writing to the system.
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
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from conversations import ROWS, learn_tokenizer

RESULT = Path(__file__).parent / "results" / "checkpoints.json"
STEPS, EVERY = 12, 4
SIDES = ("dumbo, in the background", "dumbo, at once", "transformers")

TRAINER = """\
trainer:
  output_dir: {out}
  arguments: {{batch_size: 2, physical_batch_size: 2, max_steps: {steps}, logging_steps: 1,
    save_strategy: steps, save_steps: {every}, use_cpu: true}}
  checkpoints: {{background: {background}}}
"""


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden-size", type=int, default=512, help="of the model, which has 8 layers (512)")
    parser.add_argument("--repeat", type=int, default=3, help="measurements of each, by turns (3)")
    parser.add_argument("--output", type=Path, default=RESULT, help=f"where to write the result ({RESULT})")
    parser.add_argument("--measure", nargs=2, metavar=("SIDE", "FOLDER"), help="one of them, in this process")
    options = parser.parse_args(words)
    os.environ |= {"HF_HUB_OFFLINE": "1"}
    if options.measure:
        side, folder = options.measure
        print(json.dumps(measure(side, Path(folder))))
        return 0
    values: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        parameters = write_model(Path(name), options.hidden_size)
        for _ in range(options.repeat):
            for side in SIDES:
                command = [sys.executable, __file__, "--measure", side, name]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                found = json.loads(done.stdout.splitlines()[-1])
                waited = " ".join(f"{1000 * seconds:.0f}" for seconds in found["seconds"])
                print(f"{side}: waited {waited} ms for {found['mib']:.0f} MiB each", flush=True)
                values.append({"side": side, **found})
    report = summary(values, parameters)
    for side, median in report["median_seconds"].items():
        ratio = report["ratio_to_transformers"][side]
        print(f"{side:26} {1000 * median:8.0f} ms of waiting for a checkpoint, {ratio:.2f} times Transformers'")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"\nwritten to {options.output}")
    return 0


def write_model(folder: Path, hidden_size: int) -> int:
    """Write a random model, its tokenizer and rows; return the number of parameters."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = learn_tokenizer()
    tokenizer.save_pretrained(folder)
    size = {"hidden_size": hidden_size, "intermediate_size": 3 * hidden_size, "num_hidden_layers": 8}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=8, **size))
    model.save_pretrained(folder)
    rows = [[("user", f"What is {n} and {n}?"), ("assistant", f"It is {2 * n}.")] for n in range(4 * STEPS)]
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as stream:
        for row in rows:
            messages = [{"role": role, "content": text} for role, text in row]
            stream.write(json.dumps({"messages": messages}) + "\n")
    return sum(parameter.numel() for parameter in model.parameters())


def measure(side: str, folder: Path) -> dict[str, Any]:
    """Seconds of waiting for each checkpoint, and its size."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "run"
        seconds = (
            measure_transformers(folder, out)
            if side == "transformers"
            else measure_dumbo(folder, out, side == SIDES[0])
        )
        checkpoints = [path for path in [*out.glob("checkpoints/step-*"), *out.glob("checkpoint-*")] if path.is_dir()]
        sizes = [sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) for path in checkpoints]
    assert len(seconds) == STEPS // EVERY
    return {"seconds": seconds, "mib": statistics.mean(sizes) / 2**20}


def measure_dumbo(folder: Path, out: Path, background: bool) -> list[float]:
    """From the logged `perf/checkpoint_seconds`; each is in the line of the step after, the last one in none."""
    from dumbo.cli.main import main as dumbo

    file = out.with_name("run.yaml")
    values = {"folder": folder, "out": out, "steps": STEPS + 1, "every": EVERY}
    file.write_text((ROWS + TRAINER).format(**values, background=str(background).lower()), encoding="utf-8")
    os.environ["DUMBO_CACHE"] = str(out.with_name("cache"))
    if dumbo(["train", str(file)]):
        raise SystemExit("the run failed")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["perf/checkpoint_seconds"] for line in lines if "perf/checkpoint_seconds" in line]


def measure_transformers(folder: Path, out: Path) -> list[float]:
    """The time of `_save_checkpoint`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

    seconds: list[float] = []

    class Clocked(Trainer):
        """Notes how long it takes to save."""

        def _save_checkpoint(self, *values: Any) -> None:
            began = time.monotonic()
            super()._save_checkpoint(*values)
            seconds.append(time.monotonic() - began)

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.arange(32)
    arguments = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=2,
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=EVERY,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    rows: Any = [{"input_ids": ids, "labels": ids}] * (2 * STEPS)
    model = AutoModelForCausalLM.from_pretrained(folder)
    Clocked(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer).train()
    return seconds


def summary(values: Sequence[Mapping[str, Any]], parameters: int) -> dict[str, Any]:
    """Medians and ratios, every measured value, and what they were measured on."""
    medians = {
        side: statistics.median(second for value in values if value["side"] == side for second in value["seconds"])
        for side in SIDES
    }
    return {
        "benchmark": "checkpoints",
        "parameters": parameters,
        "median_seconds": {side: round(median, 4) for side, median in medians.items()},
        "ratio_to_transformers": {side: round(median / medians[SIDES[2]], 2) for side, median in medians.items()},
        "values": list(values),
        "versions": {name: version(name) for name in ("torch", "transformers", "safetensors")},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


if __name__ == "__main__":
    raise SystemExit(main())
