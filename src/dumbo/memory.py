"""How much main memory there is, how much this process has of it, and how bytes are told."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_UNITS = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def memory_bytes() -> tuple[int, int]:
    """Free and total main memory; 0 where the system does not tell. A container's own limit goes before."""
    try:
        page = os.sysconf("SC_PAGE_SIZE")
        total = page * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0, 0
    free = _available() or (page * os.sysconf("SC_AVPHYS_PAGES") if platform.system() == "Linux" else total)
    limit = _container_limit()
    return (min(free, limit), min(total, limit)) if limit else (free, total)


def resident_bytes() -> int:
    """Main memory that this process has; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def size(count: float) -> str:
    """Bytes as `23.4 GiB`."""
    unit, name = next((unit, name) for unit, name in _UNITS if count >= unit / 10 or unit == 2**10)
    return f"{count / unit:.1f} {name}"


def _available() -> int:
    """What Linux could give, caches included."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)


def _container_limit() -> int:
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(file).read_text(encoding="ascii").strip()
        except OSError:
            continue
        return int(text) if text.isdecimal() and int(text) < 2**60 else 0
    return 0
