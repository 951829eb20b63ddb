"""How fast this machine multiplies matrices: the ceiling that `sft.py --set gpu` holds trainings against.

Prints one JSON object: TFLOP/s of the fastest of some products in bfloat16, and the device.
"""

from __future__ import annotations

import json
import time

import torch

SIZES = ((8192, 8192, 8192), (8192, 14336, 4096), (8192, 4096, 14336))
"""Rows, columns and what is summed over: a square, and the products of an 8 B Llama."""
REPEAT = 20


def main() -> None:
    """Measure; on a CPU, matrices of a sixteenth of the size."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    best = max(tflops([size if on_gpu else size // 16 for size in sizes], device) for sizes in SIZES)
    name = torch.cuda.get_device_name() if on_gpu else "CPU"
    print(json.dumps({"matmul_tflops": round(best, 4), "device": name}))


def tflops(sizes: list[int], device: torch.device) -> float:
    """Of products `[M, K] @ [K, N]`, after some that are not counted."""
    rows, columns, inner = sizes
    left = torch.randn(rows, inner, device=device, dtype=torch.bfloat16)
    right = torch.randn(inner, columns, device=device, dtype=torch.bfloat16)
    for _ in range(5):
        left @ right
    wait(device)
    began = time.perf_counter()
    for _ in range(REPEAT):
        left @ right
    wait(device)
    return 2 * rows * columns * inner * REPEAT / (time.perf_counter() - began) / 1e12


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
