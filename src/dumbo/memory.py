"""How much main memory there is."""

from __future__ import annotations

import os
import platform
from pathlib import Path


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
