"""`dumbo cache [list | prune] [--folder FOLDER] [--older-than DAYS] [--over SIZE] [--all]`."""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dumbo.data.store import Store

_DAY = 86400.0
_UNITS = "KMGT"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "action", nargs="?", choices=("list", "prune"), default="list", help="list (the default), prune"
    )
    parser.add_argument("--folder", type=Path, help="another folder than $DUMBO_CACHE, by default ~/.cache/dumbo")
    parser.add_argument("--older-than", type=_days, metavar="DAYS", help="prune what was not used for so many days")
    parser.add_argument("--over", type=_size, metavar="SIZE", help="prune until all is not more than this, such as 20G")
    parser.add_argument("--all", action="store_true", help="prune everything")


def run(options: argparse.Namespace) -> int:
    """List what is kept, or remove some of it."""
    from dumbo.console import Console
    from dumbo.data.store import Store, cache_folder
    from dumbo.errors import DumboError

    asked = options.all or options.older_than is not None or options.over is not None
    if options.action == "list" and asked:
        raise DumboError("dumbo cache: to remove something, write dumbo cache prune")
    if options.action == "prune" and not asked:
        raise DumboError("dumbo cache prune: say what is to go\n    --older-than 30, --over 20G or --all")
    folder = options.folder or cache_folder()
    if not folder.is_dir():
        print(f"{folder}: nothing is kept")
        return 0
    store, console = Store(folder), Console()
    if options.action == "prune":
        return _prune(store, options)
    found = store.entries()
    entries, begun = [entry for entry in found if entry.source], [entry for entry in found if not entry.source]
    lines = [[e.source, e.rows, e.tokens, shown_size(e.bytes), _age(e.used)] for e in entries]
    console.table(["source", "rows", "tokens", "size", "last used"], lines)
    count = f"{len(entries)} prepared source{'s' if len(entries) != 1 else ''}"
    console.say(f"{folder}: {count}, {shown_size(sum(entry.bytes for entry in entries))}")
    if begun:
        size = shown_size(sum(entry.bytes for entry in begun))
        console.say(f"{len(begun)} unfinished, {size}: the next run with the same source goes on with it")
    return 0


def _prune(store: Store, options: argparse.Namespace) -> int:
    before = time.time() - (options.older_than or 0) * _DAY if options.older_than is not None else float("-inf")
    freed = removed = 0
    kept = 0
    for entry in store.entries():
        over = options.over is not None and kept + entry.bytes > options.over
        if (options.all or entry.used < before or over) and store.remove(entry.key):
            freed, removed = freed + entry.bytes, removed + 1
        else:
            kept += entry.bytes
    store.forget_rows(float("inf") if options.all else before)
    print(f"{store.folder}: {removed} removed, {shown_size(freed)}; {shown_size(kept)} are left")
    return 0


def shown_size(size: int) -> str:
    """Bytes as a person reads them: 512 B, 1.2 MB."""
    if size < 1000:
        return f"{size} B"
    power = min((len(str(size)) - 1) // 3, len(_UNITS))
    return f"{size / 1000**power:.1f} {_UNITS[power - 1]}B"


def _age(used: float) -> str:
    hours = (time.time() - used) / 3600
    return f"{hours / 24:.0f} days ago" if hours >= 48 else f"{hours:.0f} hours ago" if hours >= 2 else "just now"


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is no number of days")
    return days


def _size(text: str) -> int:
    match = re.fullmatch(rf"(\d+(?:\.\d+)?)\s*([{_UNITS}]?)B?", text.strip().upper())
    if match is None:
        raise argparse.ArgumentTypeError(f"'{text}' is no size; write for example 500M or 20G")
    return int(float(match[1]) * 1000 ** (" " + _UNITS).index(match[2] or " "))
