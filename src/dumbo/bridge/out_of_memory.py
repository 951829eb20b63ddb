"""Memory that was not enough: which errors say so, what was in it, and what to do."""

from __future__ import annotations

import re

import torch

from dumbo.memory import memory_bytes, resident_bytes, size

_SAYS_SO = re.compile(r"out of memory|can't allocate memory|cannot allocate memory|not enough memory", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` says that memory is not enough: on a GPU, or on the CPU, where PyTorch has no class for it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and _SAYS_SO.search(str(error)) is not None


def describe_memory(device: torch.device) -> str:
    """What is in the memory of `device` at this moment, in a line."""
    if device.type == "cuda":
        tensors, most = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
        held, (free, total) = torch.cuda.memory_reserved(device), torch.cuda.mem_get_info(device)
        used = f"tensors have {size(tensors)} (at most {size(most)} so far), PyTorch holds {size(held)}"
        return f"{device} has {size(total)}: {used}, {size(free)} are free"
    free, total = memory_bytes()
    return f"of {size(total)} of main memory this process has {size(resident_bytes())}, {size(free)} are free"
