"""Merging a LoRA adapter: time, processor time and peak memory of `dumbo merge`, of a script with PEFT, and of peers.

A Llama of 477 M random weights in bfloat16, in three files, and an adapter of rank 8 on the seven projections of each
layer. Every side runs in processes of its own, by turns; memory is the largest sum of the resident memory of all its
processes, looked at every 10 milliseconds, in which what processes share is counted for each. At the end all merged
models are compared. LLaMA-Factory and Axolotl have environments of their own (`benchmarks/README.md`):
`--peer llamafactory=PYTHON --peer axolotl=PYTHON`.
"""

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
from typing import Any

from sft_cases import learn_tokenizer

RESULT = Path(__file__).parent / "results" / "merge.json"
SHAPE = {
    "hidden_size": 1280,
    "intermediate_size": 3440,
    "num_hidden_layers": 20,
    "num_attention_heads": 20,
    "num_key_value_heads": 20,
    "vocab_size": 32000,
}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SCRIPT = """\
import sys
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, output = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(output, max_shard_size="400MB")
"""
PAGE = os.sysconf("SC_PAGE_SIZE")


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3, help="merges of each side (3)")
    parser.add_argument("--peer", action="append", default=[], metavar="NAME=PYTHON", help="another peer to measure")
    parser.add_argument("--layers", type=int, default=SHAPE["num_hidden_layers"], help="layers of the model (20)")
    parser.add_argument("--output", type=Path, default=RESULT, help=f"where to write the result ({RESULT})")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = write_model(folder, options.layers)
        peers = dict(named.split("=", 1) for named in options.peer)
        values = measure(sides(folder, peers), folder, options.repeat)
    print(table(values))
    result = report(values, made)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    plot(values, options.output.with_suffix(".png"))
    print(f"\nwritten to {options.output}")
    return 0


def write_model(folder: Path, layers: int) -> dict[str, Any]:
    """Write base model and adapter, with random weights, in a process of its own: its memory is not measured."""
    program = f"import merge, pathlib; merge.make(pathlib.Path({str(folder)!r}), {layers})"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parent)
    made: dict[str, Any] = json.loads((folder / "made.json").read_text())
    return made


def make(folder: Path, layers: int) -> None:
    """The model in `base`, the adapter in `adapter`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    config = LlamaConfig(**{**SHAPE, "num_hidden_layers": layers}, tie_word_embeddings=False)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder / "base", max_shard_size="400MB")
    learn_tokenizer().save_pretrained(folder / "base")
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder / "base"),
        LoraConfig(r=8, lora_alpha=16, target_modules=PROJECTIONS, task_type="CAUSAL_LM"),
    )
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.01)
    adapted.save_pretrained(folder / "adapter")
    files = list((folder / "base").glob("*.safetensors"))
    made = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "files": len(files),
        "megabytes": round(sum(file.stat().st_size for file in files) / 1e6),
    }
    (folder / "made.json").write_text(json.dumps(made))


def sides(folder: Path, peers: Mapping[str, str]) -> dict[str, list[str]]:
    """The command of each side; OUT stands for the folder that it writes."""
    base, adapter = str(folder / "base"), str(folder / "adapter")
    dumbo = [sys.executable, "-m", "dumbo", "merge", adapter, "--output", "OUT"]
    found = {
        "dumbo merge": dumbo,
        "dumbo merge --no-proof": [*dumbo, "--no-proof"],
        "peft script": [sys.executable, "-c", SCRIPT, base, adapter, "OUT"],
    }
    if "llamafactory" in peers:
        settings = {
            "model_name_or_path": base,
            "adapter_name_or_path": adapter,
            "template": "empty",
            "export_dir": "OUT",
            "export_size": 1,
            "export_device": "cpu",
        }
        found["llamafactory export"] = _configured(
            folder, peers["llamafactory"], "llamafactory-cli", "export", settings
        )
    if "axolotl" in peers:
        settings = {
            "base_model": base,
            "adapter": "lora",
            "lora_model_dir": adapter,
            "output_dir": "OUT",
            "bf16": False,
            "lora_r": 8,
            "lora_alpha": 16,
            "lora_target_modules": PROJECTIONS,
            "datasets": [{"path": adapter, "type": "alpaca"}],
            "micro_batch_size": 1,
            "num_epochs": 1,
            "learning_rate": 1e-4,
        }
        found["axolotl merge-lora"] = _configured(folder, peers["axolotl"], "axolotl", "merge-lora", settings)
    return found


def _configured(folder: Path, python: str, program: str, verb: str, settings: Mapping[str, Any]) -> list[str]:
    file = folder / f"{program}.yaml"
    file.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    return [str(Path(python).parent / program), verb, str(file)]


def measure(commands: Mapping[str, Sequence[str]], folder: Path, repeat: int) -> dict[str, list[dict[str, float]]]:
    """Wall seconds, processor seconds and peak megabytes of every merge, by turns; the first round is thrown away."""
    values: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    weights: dict[str, Any] = {}
    for turn in range(repeat + 1):
        for name, command in commands.items():
            output = folder / "out"
            shutil.rmtree(output, ignore_errors=True)
            found = run([word.replace("OUT", str(output)) for word in _written(command, output)], folder)
            if turn:
                values[name].append(found)
                print(f"{name}: {found}", flush=True)
            else:
                weights[name] = digest_of(output)
    if len(set(weights.values())) > 1:
        print(f"the merged models differ: {weights}")
    return values


def _written(command: Sequence[str], output: Path) -> list[str]:
    """The command, with the folder in its configuration file, where it has one."""
    file = Path(command[-1])
    if file.suffix != ".yaml":
        return list(command)
    filled = file.with_name(f"filled-{file.name}")
    filled.write_text(file.read_text().replace('"OUT"', json.dumps(str(output))), encoding="utf-8")
    return [*command[:-1], str(filled)]


def run(command: Sequence[str], folder: Path) -> dict[str, float]:
    """What a process and all that it starts take; its failure is ours."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "AXOLOTL_DO_NOT_TRACK": "1"}
    before, start, peak = os.times(), time.perf_counter(), 0
    with (folder / "said").open("w+") as said:
        process = subprocess.Popen(command, env=environment, cwd=folder, stdout=said, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(0.01)
        seconds = time.perf_counter() - start
        if process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{said.read()[-3000:]}")
    after = os.times()
    used = after.children_user - before.children_user + after.children_system - before.children_system
    return {"seconds": round(seconds, 2), "cpu_seconds": round(used, 2), "peak_mb": round(peak / 1e6)}


def resident(process: int) -> int:
    """Bytes of memory that a process and its children have."""
    total = 0
    try:
        total += int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE
        for task in Path(f"/proc/{process}/task").iterdir():
            total += sum(resident(int(child)) for child in (task / "children").read_text().split())
    except (OSError, IndexError):  # It has ended meanwhile.
        pass
    return total


def digest_of(folder: Path) -> str:
    """Of all tensors, whatever file they are in."""
    import hashlib

    from safetensors import safe_open

    found = folder if list(folder.glob("*.safetensors")) else folder / "merged"
    digests = {}
    for file in found.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (it is no dictionary)
                raw = tensors.get_tensor(name).contiguous().view(-1).view(dtype=_bytes()).numpy()
                digests[name] = hashlib.blake2b(raw, digest_size=8).hexdigest()
    return hashlib.blake2b(json.dumps(digests, sort_keys=True).encode(), digest_size=8).hexdigest()


def _bytes() -> Any:
    import torch

    return torch.uint8


def medians(values: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Of each side and measure."""
    return {
        name: {key: round(statistics.median(each[key] for each in found), 2) for key in found[0]}
        for name, found in values.items()
    }


def table(values: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """The medians as text, beside those of the script with PEFT."""
    found = medians(values)
    peft = found["peft script"]
    lines = [f"{'':26} {'seconds':>8} {'cpu':>8} {'peak MB':>8} {'x time':>7} {'x memory':>8}"]
    for name, each in found.items():
        times, memory = each["seconds"] / peft["seconds"], each["peak_mb"] / peft["peak_mb"]
        row = f"{name:26} {each['seconds']:8.2f} {each['cpu_seconds']:8.2f} {each['peak_mb']:8.0f}"
        lines.append(f"{row} {times:7.2f} {memory:8.2f}")
    return "\n".join(lines)


def report(values: Mapping[str, Sequence[Mapping[str, float]]], made: Mapping[str, Any]) -> dict[str, Any]:
    """Medians, every measured value, and what they were measured on."""
    return {
        "benchmark": "merge",
        "model": dict(made),
        "median": medians(values),
        "values": {name: list(found) for name, found in values.items()},
        "threads": os.environ.get("OMP_NUM_THREADS", "all"),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    }


def plot(values: Mapping[str, Sequence[Mapping[str, float]]], file: Path) -> None:
    """Bars of seconds and of memory, side by side."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    found = medians(values)
    names = list(found)[::-1]
    colours = ["#1f6f8b" if name.startswith("dumbo") else "#c9a227" for name in names]
    figure, axes = plt.subplots(1, 2, figsize=(10, 0.45 * len(names) + 1.2), layout="constrained", sharey=True)
    for axis, key, title in zip(axes, ("seconds", "peak_mb"), ("Seconds", "Peak memory, MB"), strict=True):
        bars = axis.barh(names, [found[name][key] for name in names], color=colours)
        axis.bar_label(bars, fmt="%.1f" if key == "seconds" else "%.0f", fontsize=8, padding=4)
        for place, name in enumerate(names):
            axis.plot(
                [each[key] for each in values[name]], [place] * len(values[name]), ".", color="black", markersize=3
            )
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.15)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    raise SystemExit(main())
