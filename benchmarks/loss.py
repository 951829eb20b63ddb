"""Time and memory of the loss of a large vocabulary: hidden states and the head's weight to the loss and its gradients.

Each measurement is a process of its own, by turns: forward and backward of `--tokens` tokens, all of them trained, the
median of `--repeat` after one that is not counted, and the most memory that they took beyond hidden states and weight.

- `held`: PyTorch's linear layer and cross entropy, with all logits.
- `dumbo`: `dumbo.kernels.linear_cross_entropy`, as in every run whose logits are large.
- `trl`: what TRL's `SFTTrainer` computes its loss with.
- `torch`: PyTorch's `linear_cross_entropy` with the options that it chooses.
- `liger`: Liger's fused loss; on GPUs alone.

Losses and gradients are compared with those of `held` before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "loss.json"
SIZES = (8_192, 32_768, 131_072, 262_144)
TYPES = ("float32", "bfloat16")
SIDES = ("held", "dumbo", "trl", "torch")
COLOURS = {"held": "#8a8d91", "dumbo": "#1f6f8b", "trl": "#c9a227", "torch": "#7a9e7e", "liger": "#b5651d"}
LONGEST = 120
"""Seconds after which a measurement is given up."""
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
"""By which gradients may differ, of the largest one."""


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, write the JSON file and the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024, help="tokens (1024)")
    parser.add_argument("--hidden", type=int, default=256, help="width of hidden states (256)")
    parser.add_argument("--repeat", type=int, default=3, help="timed passes of each (3)")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="vocabularies")
    parser.add_argument("--types", nargs="+", default=list(TYPES), help="types of hidden states and weight")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--output", type=Path, default=RESULT, help=f"where to write the result ({RESULT})")
    parser.add_argument("--measure", metavar="JSON", help="one of them, in this process")
    options = parser.parse_args(words)
    if options.measure:
        print(json.dumps(measure(json.loads(options.measure))))
        return 0
    values = list(measure_all(options))
    report = {
        "benchmark": "loss",
        "tokens": options.tokens,
        "hidden": options.hidden,
        "ratios_to_held": ratios(values),
        "values": values,
        "versions": {name: version(name) for name in ("torch", "trl")},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, {options.device}",
        "threads": os.environ.get("OMP_NUM_THREADS", "as many as there are cores"),
    }
    print(table(values))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    plot(values, options.output.with_suffix(".png"))
    print(f"\nwritten to {options.output}")
    return 0


def measure_all(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every size, type and side, with a weight that is trained and with one that is not."""
    sides = (*SIDES, "liger") if options.device == "cuda" else SIDES
    for size in options.sizes:
        for dtype in options.types:
            for frozen in (False, True):
                for side in sides:
                    case = {"side": side, "size": size, "dtype": dtype, "frozen": frozen}
                    given = {"tokens": options.tokens, "hidden": options.hidden, "repeat": options.repeat}
                    wanted = {**case, **given, "device": options.device}
                    if size == min(options.sizes) and side != "held":
                        _measured({**wanted, "compares": True})  # A process of its own, as it takes memory.
                    found = {**case, **_measured({**wanted, "compares": False})}
                    print(" ".join(f"{name}={value}" for name, value in found.items()), flush=True)
                    yield found


def _measured(case: Mapping[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, "--measure", json.dumps(case)]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=LONGEST, check=True)
    except subprocess.TimeoutExpired:
        return {"milliseconds": None, "mib": None}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(case: Mapping[str, Any]) -> dict[str, float]:
    """One side of one case."""
    import torch

    torch.manual_seed(0)
    device, dtype = torch.device(case["device"]), getattr(torch, case["dtype"])
    hidden = torch.randn(case["tokens"], case["hidden"], device=device).to(dtype).requires_grad_()
    weight = (torch.randn(case["size"], case["hidden"], device=device) * 0.02).to(dtype)
    weight.requires_grad_(not case["frozen"])
    targets = torch.randint(case["size"], (case["tokens"],), device=device)
    compute = losses()[case["side"]]
    if case["compares"]:
        compare(compute, losses()["held"], hidden, weight, targets, TOLERANCE[case["dtype"]])
        return {}
    seconds, before = [], _start_of_memory(device)
    for _ in range(case["repeat"] + 1):
        hidden.grad = weight.grad = None
        began = time.perf_counter()
        compute(hidden, weight, targets).backward()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    mib = (_most_memory(device) - before) / 2**20
    return {"milliseconds": round(1e3 * statistics.median(seconds[1:]), 1), "mib": round(mib, 1)}


def losses() -> dict[str, Callable[..., Any]]:
    """(hidden, weight, targets) -> the sum of the losses, by side."""
    import torch.nn.functional as F  # noqa: N812

    def held(hidden: Any, weight: Any, targets: Any) -> Any:
        return F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="sum")

    def dumbo(hidden: Any, weight: Any, targets: Any) -> Any:
        from dumbo.kernels.linear_cross_entropy import LossOptions, linear_cross_entropy
        from dumbo.kernels.linear_logits import LinearLogits

        return linear_cross_entropy(LinearLogits((hidden,), (weight,)), targets, LossOptions()).total

    def trl(hidden: Any, weight: Any, targets: Any) -> Any:
        from trl.trainer import utils

        chunk, outputs = utils._CHUNKED_LOGPROB_CHUNK_SIZE, ("log_probs",)
        return -utils._ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, chunk, None, 1.0, outputs)[
            0
        ].sum()

    def torchs(hidden: Any, weight: Any, targets: Any) -> Any:
        from torch.nn import LinearCrossEntropyOptions

        return F.linear_cross_entropy(hidden, weight, targets, reduction="sum", options=LinearCrossEntropyOptions())

    def liger(hidden: Any, weight: Any, targets: Any) -> Any:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        return liger_fused_linear_cross_entropy(hidden, weight, targets, reduction="sum")

    return {"held": held, "dumbo": dumbo, "trl": trl, "torch": torchs, "liger": liger}


def compare(compute: Any, reference: Any, hidden: Any, weight: Any, targets: Any, tolerance: float) -> None:
    """End the program where the gradients of the two are not the same."""
    import torch

    wanted = [tensor for tensor in (hidden, weight) if tensor.requires_grad]
    ours, theirs = (torch.autograd.grad(loss(hidden, weight, targets), wanted) for loss in (compute, reference))
    for mine, their in zip(ours, theirs, strict=True):
        difference = ((mine - their).abs().max() / their.abs().max()).item()
        if difference > tolerance:
            raise SystemExit(f"the gradients differ by {difference:.1e} of the largest")


def _wait(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def _start_of_memory(device: Any) -> int:
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return int(torch.cuda.memory_allocated())
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # The highest mark is that of now.
    return _status("VmRSS")


def _most_memory(device: Any) -> int:
    import torch

    return int(torch.cuda.max_memory_allocated()) if device.type == "cuda" else _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def ratios(values: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each case and side, time and memory as parts of those with all logits."""
    found: dict[str, dict[str, Any]] = {}
    for case, of in by_case(values).items():
        held = of["held"]
        found[case] = {
            side: {name: _ratio(value[name], held[name]) for name in ("milliseconds", "mib")}
            for side, value in of.items()
            if side != "held"
        }
    return found


def _ratio(value: float | None, other: float | None) -> float | None:
    return None if value is None or not other else round(value / other, 2)


def by_case(values: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """The values of all sides of a case, by its name."""
    cases: dict[str, dict[str, Mapping[str, Any]]] = {}
    for value in values:
        name = f"{value['size']:,} {value['dtype']}{' frozen' if value['frozen'] else ''}"
        cases.setdefault(name, {})[value["side"]] = value
    return cases


def table(values: Sequence[Mapping[str, Any]]) -> str:
    """Milliseconds and MiB of every side."""
    cases = by_case(values)
    sides = list(next(iter(cases.values())))
    lines = [f"\n{'vocabulary':26}" + "".join(f"{side:>20}" for side in sides)]
    for name, of in cases.items():
        cells = (
            f"{of[side]['milliseconds']:,.0f} ms {of[side]['mib']:,.0f} MiB"
            if of[side]["mib"] is not None
            else f"over {LONGEST} s"
            for side in sides
        )
        lines.append(f"{name:26}" + "".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


def plot(values: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Time and memory by vocabulary, for each type and kind of weight."""
    import matplotlib.pyplot as plt

    kinds = list(dict.fromkeys((value["dtype"], value["frozen"]) for value in values))
    figure, rows = plt.subplots(2, len(kinds), figsize=(3.4 * len(kinds), 6), squeeze=False, sharex=True)
    for column, (dtype, frozen) in enumerate(kinds):
        for row, (name, label) in enumerate((("milliseconds", "ms, forward and backward"), ("mib", "MiB at the most"))):
            axes = rows[row][column]
            for side in dict.fromkeys(value["side"] for value in values):
                ours = [v for v in values if (v["side"], v["dtype"], v["frozen"]) == (side, dtype, frozen)]
                ours = [value for value in ours if value[name]]
                points = [value["size"] for value in ours], [value[name] for value in ours]
                axes.plot(*points, marker="o", label=side, color=COLOURS[side])
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.grid(alpha=0.3)
            if not row:
                axes.set_title(f"{dtype}, {'frozen' if frozen else 'trained'} head", fontsize=10)
            else:
                axes.set_xlabel("vocabulary")
                axes.set_xticks([value["size"] for value in ours], [f"{v['size'] // 1024} k" for v in ours])
            if not column:
                axes.set_ylabel(label)
    rows[0][0].legend(frameon=False, fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    raise SystemExit(main())
