"""What a data file is: its format, how it is called in messages, and which split its name says it belongs to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

FORMATS = MappingProxyType(
    {
        ".json": "json",
        ".jsonl": "jsonl",
        ".ndjson": "jsonl",
        ".csv": "csv",
        ".parquet": "parquet",
        ".arrow": "arrow",
        ".ipc": "arrow",
        ".feather": "arrow",
    }
)
"""Format by suffix."""

_COMPRESSIBLE = frozenset({"json", "jsonl", "csv"})
# Files beside the data that describe it: the list of `datasets`, and what its `save_to_disk` writes.
_DESCRIPTIONS = frozenset({"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})
_SPLIT_WORDS = MappingProxyType(
    {
        **dict.fromkeys(("train", "training"), "train"),
        **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
        **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
    }
)
_SHARD = re.compile(r"(?P<split>\w+(?:\.\w+)*)-\d{5}-of-\d{5}.*")


@dataclass(frozen=True)
class DataFile:
    """A file to read rows from."""

    path: Path
    source: str
    """The file as users know it: from the current directory, or `owner/name/file` on the hub."""
    format: str
    """One of `FORMATS`' values."""


class SourceMistake(Exception):
    """What is wrong with a dataset's `path`, or the option `key` beside it."""

    def __init__(self, key: str, message: str, *hints: str) -> None:
        """`key` is the option that is wrong; `hints` say what to write instead, a line each."""
        self.key = key
        self.message = message
        self.hints = hints
        super().__init__(message)


def format_of(path: str) -> str | None:
    """The format that the suffix of `path` stands for (`.gz` may follow a text format), or None."""
    file = PurePosixPath(path.lower())
    if file.suffix == ".gz":
        inner = FORMATS.get(PurePosixPath(file.stem).suffix)
        return inner if inner in _COMPRESSIBLE else None
    return FORMATS.get(file.suffix)


def require_format(path: str, format: str) -> str:
    """The format to read the file `path` in: the option `format`, or what its suffix says. Raises `SourceMistake`."""
    found = format_of(path) if format == "auto" else format
    if found is None:
        suffix = PurePosixPath(path).suffix
        raise SourceMistake(
            "path",
            f"cannot tell the format of '{path}' from the suffix '{suffix}'" if suffix else f"'{path}' has no suffix",
            f"known suffixes: {', '.join(FORMATS)}; text formats may be followed by .gz",
            f"another suffix: say how it is written, e.g. `format: jsonl` ({', '.join(sorted(set(FORMATS.values())))})",
        )
    return found


def require_json(files: Sequence[DataFile], field: str | None) -> None:
    """Refuse `field` for files that are not JSON: it would do nothing."""
    for file in files:
        if field is not None and file.format != "json":
            raise SourceMistake("field", f"only files of format json have it; {file.source} is {file.format}")


def data_files_among(paths: Iterable[str], format: str) -> list[str]:
    """The sorted `paths` (relative to their root) that hold rows: of a known format, not hidden, no description."""
    return sorted(path for path in paths if _holds_rows(PurePosixPath(path), format))


def _holds_rows(path: PurePosixPath, format: str) -> bool:
    if path.name in _DESCRIPTIONS or any(part.startswith((".", "_")) for part in path.parts):
        return False
    found = format_of(str(path))
    return found is not None and format in ("auto", found)


def canonical_split(split: str) -> str:
    """`split` under the name that `datasets` uses: `dev` is `validation`; other names stay."""
    return _SPLIT_WORDS.get(split.lower(), split)


def split_of(path: str) -> str | None:
    """The split that the name of a file, or else of a folder above it, stands for; None when neither names one."""
    file = PurePosixPath(path)
    shard = _SHARD.fullmatch(file.name)
    if shard and file.parent.name == "data":
        return canonical_split(shard["split"])
    for part in reversed(file.parts):
        for word in re.split(r"[^a-z]+", part.lower()):
            if word in _SPLIT_WORDS:
                return _SPLIT_WORDS[word]
    return None


def group_by_split(paths: Iterable[str]) -> dict[str, list[str]]:
    """`paths` by split. When none of them names one, all are `train`; files without one beside others are under ''."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(split_of(path) or "", []).append(path)
    return {"train": groups[""]} if list(groups) == [""] else groups


def pick_split(groups: dict[str, list[str]], split: str | None, owner: str) -> list[str]:
    """The paths of `split` (by default `train`) in `owner`. Raises `SourceMistake` listing the splits there are."""
    wanted = split or "train"
    for name in (wanted, canonical_split(wanted)):
        if groups.get(name):
            return groups[name]
    splits = ", ".join(sorted(filter(None, groups)))
    raise SourceMistake("split", f"{owner} has no split '{wanted}'", f"splits: {splits}")


def require_one_format(paths: Sequence[str], owner: str) -> None:
    """Refuse copies of the rows in several formats, which would be read twice. Raises `SourceMistake`."""
    counts: dict[str, int] = {}
    for path in paths:
        format = format_of(path) or PurePosixPath(path).suffix
        counts[format] = counts.get(format, 0) + 1
    if len(counts) > 1:
        listed = ", ".join(f"{format} ({count})" for format, count in sorted(counts.items()))
        raise SourceMistake(
            "format",
            f"{owner} holds files of several formats: {listed}",
            "say which to read, e.g. `format: jsonl`; a second entry under datasets can read another",
        )
