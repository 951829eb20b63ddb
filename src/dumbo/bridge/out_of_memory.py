"""Memory that was not enough: which errors say so, what was in it, and what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch

from dumbo.blame import text_in_one_line
from dumbo.memory import memory_bytes, resident_bytes, size

_SAYS_SO = re.compile(r"out of memory|can't allocate memory|cannot allocate memory|not enough memory", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory is not enough: on a GPU, or on the CPU, where PyTorch has no class for it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _SAYS_SO.search(str(error)) is not None


def memory_message(device: torch.device, where: str, error: BaseException, ways: Sequence[str]) -> str:
    """What a run ends with: where memory was not enough, what is in it, and `ways` to take less."""
    reason = (text_in_one_line(error) or type(error).__name__)[:300]
    told = f"{_describe_memory(device)}\n    ({reason})"
    return f"memory is not enough: {where}\n    {told}\n    take {', or '.join(ways)}"


def _describe_memory(device: torch.device) -> str:
    """What is in the memory of `device` at this moment, in a line."""
    if device.type == "cuda":
        tensors, most = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
        held, (free, total) = torch.cuda.memory_reserved(device), torch.cuda.mem_get_info(device)
        used = f"tensors have {size(tensors)} (at most {size(most)} so far), PyTorch holds {size(held)}"
        return f"{device} has {size(total)}: {used}, {size(free)} are free"
    free, total = memory_bytes()
    return f"of {size(total)} of main memory this process has {size(resident_bytes())}, {size(free)} are free"
