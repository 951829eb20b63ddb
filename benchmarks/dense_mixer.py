"""Time and kept activations of a layer of experts whose router learns from the chosen ones, and from all of them.

One layer of a Qwen3 MoE in float32, forward and backward, by turns in one process: the median of `--repeat` after one
that is not counted. What is kept for the backward pass is counted tensor by tensor, each storage once, without weights.

- `plain`: gradients for the chosen experts, as Transformers has it.
- `dumbo`: gradients for all, by the plugin `dense_mixer`.
- `composed`: the same gradients out of autograd alone: the outputs of all experts in the forward pass. The package
  `densemixer` does so and keeps more, as it computes them with gradients; it is for an older Transformers.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from dumbo.plugins.dense_mixer.attaching import add_dense_mixer
from dumbo.plugins.dense_mixer.experts import NAME, register

RESULT = Path(__file__).parent / "results" / "dense_mixer.json"
SIDES = ("plain", "dumbo", "composed")
COLOURS = {"plain": "#8a8d91", "dumbo": "#1f6f8b", "composed": "#c98a2b"}


class Composed(nn.Module):
    """The block's output by autograd alone, with gradients for the weights of all experts."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden: Tensor) -> Tensor:
        """[1, T, H] -> [1, T, H]."""
        block, rows = self.block, hidden[0]
        logits, weights, chosen = block.gate(rows)
        sparse: Tensor = block.experts(rows, chosen, weights)
        ones = torch.ones(len(rows), 1)
        with torch.no_grad():
            each = [block.experts(rows, torch.full((len(rows), 1), e), ones) for e in range(logits.shape[-1])]
            outputs = torch.stack(each, dim=1)
        values = logits.softmax(dim=-1)
        total = values.gather(-1, chosen).sum(dim=-1, keepdim=True).detach()
        others = (values / total).scatter(-1, chosen, 0.0)
        dense = (others[..., None] * outputs).sum(dim=1)
        return (sparse + dense - dense.detach())[None]


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, write the JSON file and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=256, help="tokens (256)")
    parser.add_argument("--hidden", type=int, default=256, help="width (256)")
    parser.add_argument("--inner", type=int, default=128, help="width of an expert (128)")
    parser.add_argument("--experts", type=int, nargs="+", default=[8, 32], help="experts (8 32)")
    parser.add_argument("--chosen", type=int, default=4, help="experts of a token (4)")
    parser.add_argument("--repeat", type=int, default=5, help="timed passes of each (5)")
    parser.add_argument("--output", type=Path, default=RESULT, help=f"where to write the result ({RESULT})")
    options = parser.parse_args(words)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    register()
    cases = [measure(count, options) for count in options.experts]
    report = {
        "benchmark": "dense_mixer",
        **{name: getattr(options, name) for name in ("tokens", "hidden", "inner", "chosen", "repeat")},
        "cases": cases,
        "versions": {name: version(name) for name in ("torch", "transformers")},
        "threads": torch.get_num_threads(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, cpu",
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    plot(cases, options.output.with_suffix(".png"))
    print(f"\nwritten to {options.output}")
    return 0


def measure(count: int, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds and kept MiB of all sides, of the same weights and the same input."""
    torch.manual_seed(0)
    shape = Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=options.hidden,
        moe_intermediate_size=options.inner,
        num_experts=count,
        num_experts_per_tok=options.chosen,
        norm_topk_prob=True,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=options.hidden // 4,
    )
    plain: Any = AutoModelForCausalLM.from_config(shape, dtype=torch.float32).train()
    mixed = copy.deepcopy(plain)
    mixed.set_experts_implementation(NAME)
    add_dense_mixer(mixed, 8192, lambda line: None)
    blocks = {"plain": plain.model.layers[0].mlp, "dumbo": mixed.model.layers[0].mlp}
    blocks["composed"] = Composed(copy.deepcopy(blocks["plain"]))
    x = torch.randn(1, options.tokens, options.hidden, requires_grad=True)
    gradients = {side: passes(block, x)[1] for side, block in blocks.items()}
    farthest = float((gradients["dumbo"] - gradients["composed"]).abs().max() / gradients["composed"].abs().max())
    assert farthest < 1e-4, farthest
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(options.repeat):
        for side, block in blocks.items():
            times[side].append(passes(block, x)[0])
    found: dict[str, Any] = {"experts": count}
    for side, block in blocks.items():
        found[side] = {
            "ms": round(1000 * statistics.median(times[side]), 2),
            "ms_all": [round(1000 * value, 2) for value in times[side]],
            "kept_mib": round(kept_bytes(block, x) / 2**20, 2),
        }
    cosine = nn.functional.cosine_similarity(gradients["plain"].flatten(), gradients["dumbo"].flatten(), dim=0)
    found["router_cosine_with_plain"] = round(float(cosine), 3)
    print(f"{count} experts, {options.chosen} chosen: {json.dumps({side: found[side] for side in SIDES})}", flush=True)
    return found


def passes(block: Any, x: Tensor) -> tuple[float, Tensor]:
    """Seconds of a forward and a backward pass, and the gradient of the router."""
    block.zero_grad()
    start = time.perf_counter()
    forward(block, x).square().mean().backward()
    taken = time.perf_counter() - start
    router = next(weight for name, weight in block.named_parameters() if name.endswith("gate.weight"))
    return taken, router.grad.clone()


def forward(block: Any, x: Tensor) -> Tensor:
    """The output."""
    output = block(x * 1)
    return output[0] if isinstance(output, tuple) else output


def kept_bytes(block: nn.Module, x: Tensor) -> int:
    """Bytes of activations that a forward pass keeps for the backward pass, each storage once."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in block.parameters()}
    sizes: dict[int, int] = {}
    alive: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        alive.append(tensor)  # so that no other storage gets its place
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward(block, x)
    return sum(sizes.values())


def plot(cases: Sequence[dict[str, Any]], file: Path) -> None:
    """Bars of all sides: time, with every measured value as a dot, and what is kept."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, name, title in ((axes[0], "ms", "forward and backward, ms"), (axes[1], "kept_mib", "kept, MiB")):
        for place, case in enumerate(cases):
            for number, side in enumerate(SIDES):
                left = place + (number - 1) * 0.27
                axis.bar(left, case[side][name], 0.25, color=COLOURS[side], label=side if place == 0 else None)
                if name == "ms":
                    values = case[side]["ms_all"]
                    axis.plot([left] * len(values), values, ".", color="#222222", markersize=3)
        axis.set_xticks(range(len(cases)), [f"{case['experts']} experts" for case in cases])
        axis.set_title(title, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    figure.savefig(file, dpi=140)


if __name__ == "__main__":
    raise SystemExit(main())
