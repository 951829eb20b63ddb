"""How `batch_size` and `physical_batch_size` become accumulated forward passes on a number of devices."""

from __future__ import annotations

from dumbo.errors import Problem


def accumulation_steps(batch_size: int, physical_batch_size: int, world_size: int) -> int:
    """Forward passes per optimizer step and device. The sizes must divide, as `batch_problem` checks."""
    return batch_size // (physical_batch_size * world_size)


def batch_problem(batch_size: int, physical_batch_size: int, world_size: int) -> Problem | None:
    """What is wrong with these sizes, with the nearest sizes that work; None where they divide."""
    at_once = physical_batch_size * world_size
    if batch_size % at_once == 0:
        return None
    below, above = batch_size // at_once * at_once, -(-batch_size // at_once) * at_once
    devices = f"{world_size} devices" if world_size > 1 else "one device"
    message = (
        f"{batch_size} sequences cannot be made of {physical_batch_size} per pass on {devices} ({at_once} at once)"
    )
    fitting = [size for size in range(1, batch_size + 1) if batch_size % (size * world_size) == 0]
    hints = [f"write batch_size: {' or '.join(str(size) for size in (below, above) if size)}"]
    if fitting:
        nearest = min(fitting, key=lambda size: (abs(size - physical_batch_size), size))
        hints.append(f"or physical_batch_size: {nearest}")
    return Problem(message, ("trainer", "arguments", "batch_size"), hints=tuple(hints))
