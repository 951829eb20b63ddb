"""The GPUs of this machine, as its driver tells: torch is not imported."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_PATIENCE = 10.0
"""Seconds for a driver that does not answer."""


@dataclass(frozen=True)
class Gpu:
    """A GPU that the driver knows."""

    name: str
    driver: str = ""
    """Version of the driver, where it is told."""
    mebibytes: int | None = None
    """Memory of the device."""


def driver_gpus() -> list[Gpu]:
    """NVIDIA's GPUs by `nvidia-smi`, hidden ones included; empty where there is no such program or it fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    command = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [_gpu(line) for line in answer.splitlines() if line.count(",") >= 2]


def _gpu(line: str) -> Gpu:
    name, driver, memory = (part.strip() for part in line.rsplit(",", 2))
    return Gpu(name, driver, int(memory) if memory.isdecimal() else None)


def find_gpu() -> Gpu | None:
    """A GPU that a run would use, as far as driver and device files tell; None where there seems to be none."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    found = driver_gpus()
    if found:
        return found[0]
    for file, name in (("/dev/nvidia0", "an NVIDIA GPU"), ("/dev/kfd", "an AMD GPU")):
        if Path(file).exists():
            return Gpu(name)
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return Gpu("Apple's GPU")
    return None
