"""Time and kept activations of layers with LoRA, with the kernels of `lora_kernels` and as PEFT composes them.

The feed-forward block and the attention's four layers of a Llama, each forward and backward, by turns in one process:
the median of `--repeat` after one that is not counted. What is kept for the backward pass is counted tensor by tensor,
each storage once, without the weights; copies of weights, which autocast makes, are counted apart. Gradients of both
sides are compared before anything is timed.

- `float32`: all in float32.
- `autocast`: weights in float32, computing in bfloat16.
- `bfloat16`: weights in bfloat16, adapters in float32, as PEFT has them by default.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaMLP

from dumbo.bridge.lora_seam import fuse_lora

RESULT = Path(__file__).parent / "results" / "lora_kernels.json"
SIDES = ("peft", "dumbo")
COLOURS = {"peft": "#8a8d91", "dumbo": "#1f6f8b"}
PRECISIONS = ("float32", "autocast", "bfloat16")
TOLERANCE = {"float32": 1e-4, "autocast": 5e-2, "bfloat16": 5e-2}
"""By which gradients may differ, of the largest one."""


class Attention(nn.Module):
    """The four layers of an attention, without what is between them: it is the same on both sides."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        names = ("q_proj", "k_proj", "v_proj", "o_proj")
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(hidden, hidden, bias=False) for _ in names)

    def forward(self, x: Tensor) -> Tensor:
        """Their sum through the last one."""
        return self.o_proj(self.q_proj(x) + self.k_proj(x) + self.v_proj(x))


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, write the JSON file and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048], help="tokens (512 2048)")
    parser.add_argument("--hidden", type=int, default=1024, help="width (1024)")
    parser.add_argument("--inner", type=int, default=2816, help="width of the feed-forward block (2816)")
    parser.add_argument("--rank", type=int, default=16, help="rank of the adapters (16)")
    parser.add_argument("--repeat", type=int, default=9, help="timed passes of each (9)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--output", type=Path, default=RESULT, help=f"where to write the result ({RESULT})")
    options = parser.parse_args(words)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    cases = list(measure_all(options))
    report = {
        "benchmark": "lora_kernels",
        **{name: getattr(options, name) for name in ("hidden", "inner", "rank", "repeat")},
        "cases": cases,
        "versions": {name: version(name) for name in ("torch", "peft", "transformers")},
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {options.device}",
    }
    print(table(cases))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    plot(cases, options.output.with_suffix(".png"))
    print(f"\nwritten to {options.output}")
    return 0


def measure_all(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every part, precision and number of tokens."""
    for tokens in options.tokens:
        for precision in options.precisions:
            for part in ("feed-forward", "attention"):
                yield measure(part, precision, tokens, options)


def measure(part: str, precision: str, tokens: int, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds and kept MiB of both sides, of the same weights and the same input."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    shape = LlamaConfig(hidden_size=options.hidden, intermediate_size=options.inner)
    module: nn.Module = LlamaMLP(shape) if part == "feed-forward" else Attention(options.hidden)
    lora = LoraConfig(r=options.rank, lora_alpha=2 * options.rank, target_modules=".*_proj", init_lora_weights=False)
    plain = inject_adapter_in_model(lora, nn.Sequential(module).to(dtype)).to(options.device).train()
    for name, parameter in plain.named_parameters():
        parameter.requires_grad_("lora_" in name)
        if "lora_" in name:
            parameter.data = parameter.data.float()
    fused = copy.deepcopy(plain)
    fuse_lora(fused, blocks=True, layers=True)
    x = torch.randn(1, tokens, options.hidden, dtype=dtype, device=options.device, requires_grad=True)
    sides = dict(zip(SIDES, (plain, fused), strict=True))
    outcomes = {side: passes(model, x, precision)[1] for side, model in sides.items()}
    for one, other in zip(*outcomes.values(), strict=True):
        farthest = float((one - other).abs().max() / one.abs().max())
        assert farthest < TOLERANCE[precision], farthest
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(options.repeat):
        for side, model in sides.items():
            times[side].append(passes(model, x, precision)[0])
    found: dict[str, Any] = {"part": part, "precision": precision, "tokens": tokens}
    for side, model in sides.items():
        activations, copies = kept_bytes(model, x, precision)
        found[side] = {
            "ms": round(1000 * statistics.median(times[side]), 2),
            "ms_all": [round(1000 * value, 2) for value in times[side]],
            "kept_mib": round(activations / 2**20, 2),
            "copies_of_weights_mib": round(copies / 2**20, 2),
        }
    found["time_ratio"] = round(found["dumbo"]["ms"] / found["peft"]["ms"], 3)
    found["kept_ratio"] = round(found["dumbo"]["kept_mib"] / found["peft"]["kept_mib"], 3)
    return found


def passes(model: nn.Module, x: Tensor, precision: str) -> tuple[float, list[Tensor]]:
    """Seconds of a forward and a backward pass, and the gradients."""
    model.zero_grad()
    x.grad = None
    start = now(x)
    forward(model, x, precision).float().square().mean().backward()
    taken = now(x) - start
    assert x.grad is not None
    trained = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return taken, [gradient.clone().float() for gradient in (x.grad, *trained)]


def forward(model: nn.Module, x: Tensor, precision: str) -> Tensor:
    """The output."""
    with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=precision == "autocast"):
        output: Tensor = model(x * 1)  # a layer's input is no leaf, of which autocast would keep one copy
    return output


def now(x: Tensor) -> float:
    """Seconds, when all that was asked of the device is done."""
    if x.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def kept_bytes(model: nn.Module, x: Tensor, precision: str) -> tuple[int, int]:
    """Bytes that a forward pass keeps for the backward pass, each storage once: of activations, and of copies of
    weights, which autocast makes of those in float32. The weights themselves do not count."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, tuple[int, bool]] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        alive.append(tensor)  # so that no other storage gets its place
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = (storage.nbytes(), x.shape[1] in tensor.shape[:-1])
        return tensor

    def unpack(tensor: Tensor) -> Tensor:
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        forward(model, x, precision)
    activations = sum(size for size, is_activation in sizes.values() if is_activation)
    return activations, sum(size for size, _ in sizes.values()) - activations


def table(cases: Sequence[dict[str, Any]]) -> str:
    """The cases as text."""
    lines = ["tokens  precision  part          PEFT ms  dumbo ms  ratio  PEFT kept  dumbo kept (MiB)  ratio"]
    for case in cases:
        peft, dumbo = (case[side] for side in SIDES)
        lines.append(
            f"{case['tokens']:6}  {case['precision']:9}  {case['part']:12}  {peft['ms']:7.1f}  {dumbo['ms']:8.1f}"
            f"  {case['time_ratio']:5.2f}  {peft['kept_mib']:9.1f}  {dumbo['kept_mib']:16.1f}"
            f"  {case['kept_ratio']:5.2f}"
        )
    return "\n".join(lines)


def plot(cases: Sequence[dict[str, Any]], file: Path) -> None:
    """Bars of both sides: what is kept, and the time with every measured value as a dot."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    labels = [f"{case['part']}\n{case['precision']}\n{case['tokens']:,}" for case in cases]
    figure, axes = plt.subplots(2, 1, figsize=(12, 8), layout="constrained")
    for axis, (name, title) in zip(axes, (("kept_mib", "kept activations, MiB"), ("ms", "milliseconds")), strict=True):
        for number, side in enumerate(SIDES):
            places = [at + (number - 0.5) * 0.4 for at in range(len(cases))]
            bars = axis.bar(places, [case[side][name] for case in cases], 0.36, color=COLOURS[side], label=side)
            axis.bar_label(bars, fmt="{:,.0f}", fontsize=7, padding=2)
            for place, case in zip(places, cases, strict=True):
                if name == "ms":
                    axis.plot(
                        [place] * len(case[side]["ms_all"]), case[side]["ms_all"], ".", color="black", markersize=2
                    )
        axis.set_title(title, fontsize=10)
        axis.set_xticks(range(len(cases)), labels, fontsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    raise SystemExit(main())
