"""What a run can compute with and write to: GPUs, CPU, memory, threads, disks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dumbo.diagnosis.findings import Finding
from dumbo.diagnosis.libraries import Probed
from dumbo.memory import memory_bytes, size
from dumbo.starting.machine import Gpu, driver_gpus
from dumbo.starting.models import hub_cache

_LITTLE_DISK = 2 * 2**30


def device_findings(probed: Probed) -> Iterator[Finding]:
    """Everything, the GPUs first."""
    yield from _gpu_findings(probed, driver_gpus())
    cores, mine = os.cpu_count() or 0, usable_cores()
    free, total = memory_bytes()
    memory = f", {size(total)} memory, {size(free)} free" if total else ""
    yield Finding("cpu", f"{mine} cores{f' (of {cores})' if mine != cores else ''}{memory}")
    yield _threads(probed.torch, mine)
    yield from _disks()


def _gpu_findings(probed: Probed, known: list[Gpu]) -> Iterator[Finding]:
    torch = probed.torch
    gpus = torch.get("gpus", [])
    for index, gpu in enumerate(gpus):
        bf16 = "bfloat16" if gpu["bf16"] else "no bfloat16"
        memory = f"{size(gpu['free'])} of {size(gpu['total'])} free"
        yield Finding(f"gpu {index}", f"{gpu['name']}, {memory}, compute capability {gpu['capability']}, {bf16}")
    if torch.get("mps"):
        yield Finding("gpu", "Apple's GPU (mps)")
    build = _build_words(torch)
    driver = f", driver {known[0].driver}" if known and known[0].driver else ""
    if gpus:
        yield Finding("cuda", f"torch is built for {build}{driver}")
    elif known and torch:
        yield _unused(known, torch, f"torch is built {build}{driver}")
    elif torch and not torch.get("mps"):
        yield Finding("gpu", f"none found (torch is built {'' if build == 'without CUDA' else 'for '}{build})")
    elif known:
        yield Finding("gpu", f"{known[0].name}{driver}; torch cannot be asked")


def _unused(known: list[Gpu], torch: Mapping[str, Any], build: str) -> Finding:
    """A GPU that the driver knows and torch does not use."""
    text = f"{known[0].name}, but torch does not use it: {torch.get('gpu_error') or build}"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and not torch.get("gpu_error") and torch.get("cuda"):
        return Finding("gpu", f"{text}; CUDA_VISIBLE_DEVICES='{hidden}'", note="unset it to use the GPU")
    if not torch.get("cuda") and not torch.get("hip"):
        return Finding("gpu", text, "install the build of PyTorch for this driver; pytorch.org has the command")
    return Finding("gpu", text, "the driver does not fit this build: update it, or install another build of PyTorch")


def _build_words(torch: Mapping[str, Any]) -> str:
    if torch.get("cuda"):
        return f"CUDA {torch['cuda']}"
    return f"ROCm {torch['hip']}" if torch.get("hip") else "without CUDA"


def _threads(torch: Mapping[str, Any], cores: int) -> Finding:
    wanted = os.environ.get("OMP_NUM_THREADS")
    used = torch.get("threads")
    words = [f"OMP_NUM_THREADS={wanted}" if wanted else "OMP_NUM_THREADS is not set"]
    words += [f"torch uses {used}"] if used else []
    few = isinstance(used, int) and used < cores and not torch.get("gpus")
    note = f"on the CPU, OMP_NUM_THREADS={cores} would use all cores" if few else ""
    return Finding("threads", ", ".join(words), note=note)


def _disks() -> Iterator[Finding]:
    for name, folder in (("disk, this folder", Path.cwd()), ("disk, hub's cache", hub_cache())):
        existing = next((path for path in (folder, *folder.absolute().parents) if path.exists()), Path("/"))
        try:
            free = shutil.disk_usage(existing).free
        except OSError as error:
            yield Finding(name, f"cannot be asked: {error.strerror}")
            continue
        text = f"{size(free)} free ({folder})"
        yield Finding(name, text, note="that is little: a model is written at the end" if free < _LITTLE_DISK else "")


def usable_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
