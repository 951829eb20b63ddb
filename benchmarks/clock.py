"""What a block of a program takes: seconds, processor seconds and memory. Needs nothing but the standard library."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def clocked() -> Iterator[dict[str, float]]:
    """What the block takes: seconds, processor seconds of this process and its children, and the most memory of this
    process in MiB."""
    found: dict[str, float] = {"memory_before_mib": peak_memory()}
    wall, processor = time.perf_counter(), sum(os.times()[:4])
    yield found
    found["wall_seconds"], found["cpu_seconds"] = time.perf_counter() - wall, sum(os.times()[:4]) - processor
    found["memory_mib"] = peak_memory()


def peak_memory() -> float:
    """MiB. Not by `getrusage`, which also has what the process that started this one needed."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
