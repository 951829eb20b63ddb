"""Tells names on the hub from paths on this machine, and finds what lies near a path that is not there."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

_HUB_NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)


def is_hub_name(name: str) -> bool:
    """Whether `name` is written as `owner/name`, and nothing on this machine is called so: what is there wins."""
    return _HUB_NAME.fullmatch(name) is not None and not Path(name).exists()


def near_paths(path: Path, *, folders: bool = False) -> tuple[str, ...]:
    """A hint with the paths beside `path` (only `folders`) whose names resemble its own; empty where there are none."""
    beside = {entry.name: entry for entry in entries(path.parent) if not folders or entry.is_dir()}
    near = [repr(str(beside[name])) for name in difflib.get_close_matches(path.name, beside)]
    return (f"did you mean {' or '.join(near)}?",) if near else ()


def entries(folder: Path) -> list[Path]:
    """What is in `folder`, in the order of names; nothing where it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
