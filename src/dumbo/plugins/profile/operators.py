"""What a profile says of single operators: their share of the time, how often they ran, what they allocated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch._C._autograd import DeviceType
from torch.profiler import profile

MOST = 50
"""Operators in the summary, from the one that takes most; the others are one line."""


@dataclass(frozen=True)
class Operator:
    """An operator, over all measured steps and without the operators that it calls."""

    name: str
    share: float
    """Of the time of all operators, from 0 to 1."""
    seconds: float
    calls: int
    allocated: int
    """Bytes, less those that it freed."""


def operators_of(profiler: profile, device: str, by_shape: bool) -> list[Operator]:
    """The operators that take most of the time on `device`, first the slowest, and the others as one."""
    found: list[tuple[str, float, int, int]] = []
    for event in profiler.key_averages(group_by_input_shape=by_shape):
        # A kernel has an event of its own beside that of the operator which started it.
        if event.device_type != DeviceType.CPU:
            continue
        on_gpu = device == "cuda"
        micros = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        memory = event.self_device_memory_usage if on_gpu else event.self_cpu_memory_usage
        shapes = f" {event.input_shapes}" if by_shape and event.input_shapes else ""
        found.append((f"{event.key}{shapes}", micros / 1e6, event.count, memory))
    total = sum(seconds for _, seconds, _, _ in found) or 1.0
    found.sort(key=lambda row: -row[1])
    rows = [row for row in found[:MOST] if row[1] > 0]
    rest = found[len(rows) :]
    if any(row[1] > 0 for row in rest):
        seconds, calls, memory = (sum(column) for column in list(zip(*rest, strict=True))[1:])
        rows.append((f"({len(rest)} others)", seconds, calls, memory))
    return [Operator(name, seconds / total, seconds, calls, memory) for name, seconds, calls, memory in rows]


def table(operators: Sequence[Operator], memory: bool) -> list[str]:
    """The lines of a table, with a header."""
    lines = [f"   share        time    calls{'   allocated' if memory else ''}  operator"]
    for operator in operators:
        allocated = f"  {operator.allocated / 2**20:6.1f} MiB" if memory else ""
        numbers = f"  {operator.share:6.1%}  {operator.seconds * 1e3:7.2f} ms  {operator.calls:7}"
        lines.append(f"{numbers}{allocated}  {operator.name}")
    return lines
