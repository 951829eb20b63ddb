"""What a data file is: its format, how it is called in messages, and which split its name says it belongs to."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

FORMATS = MappingProxyType(
    {
        ".json": "json",
        ".jsonl": "jsonl",
        ".ndjson": "jsonl",
        ".csv": "csv",
        ".tsv": "tsv",
        ".parquet": "parquet",
        ".arrow": "arrow",
        ".ipc": "arrow",
        ".feather": "arrow",
        ".txt": "text",
        ".md": "text",
    }
)
"""Format by suffix."""

COMPRESSIONS = (".gz", ".zst")
"""Suffixes that may follow those of text formats."""
_COMPRESSIBLE = frozenset({"json", "jsonl", "csv", "tsv", "text"})
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

    source: str
    """The file as users know it: from the current directory, `owner/name/file` on the hub, an address."""
    format: str
    """One of `FORMATS`' values."""

    def open(self) -> io.BufferedReader:
        """A stream of its bytes."""
        raise NotImplementedError

    @contextmanager
    def on_disk(self) -> Iterator[Path]:
        """The path of a file with its bytes, which may be there only for the time of the `with` statement."""
        raise NotImplementedError
        yield

    def fingerprint(self) -> str:
        """What changes with its bytes. Here: their hash; they are read as a stream."""
        with self.open() as stream:
            return "bytes:" + hashlib.file_digest(stream, "blake2b").hexdigest()


@dataclass(frozen=True)
class LocalFile(DataFile):
    """A file on this machine."""

    path: Path
    version: str = ""
    """What stands for its bytes where something does: of the hub the commit and the name."""

    def open(self) -> io.BufferedReader:
        """A stream of its bytes."""
        return self.path.open("rb")

    @contextmanager
    def on_disk(self) -> Iterator[Path]:
        """Its path."""
        yield self.path

    def fingerprint(self) -> str:
        """What changes with its bytes: their version, or else their hash."""
        return self.version or super().fingerprint()


class SourceMistake(Exception):
    """What is wrong with a dataset's `path`, or the option `key` beside it."""

    def __init__(self, key: str, message: str, *hints: str) -> None:
        """`key` is the option that is wrong; `hints` say what to write instead, a line each."""
        self.key = key
        self.message = message
        self.hints = hints
        super().__init__(message)


def format_of(path: str) -> str | None:
    """The format that the suffix of `path` stands for (`.gz` or `.zst` may follow a text format), or None."""
    file = PurePosixPath(path.lower())
    if file.suffix in COMPRESSIONS:
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
            f"known suffixes: {', '.join(FORMATS)}; text formats may be followed by {' or '.join(COMPRESSIONS)}",
            f"another suffix: say how it is written, e.g. `format: jsonl` ({', '.join(sorted(set(FORMATS.values())))})",
        )
    return found


def require_formats(files: Sequence[DataFile], field: str | None, rows: str | None) -> None:
    """Refuse `field` for files that are not JSON, and `rows` for those that are not text: they would do nothing."""
    for key, value, format in (("field", field, "json"), ("rows", rows, "text")):
        for file in files:
            if value is not None and file.format != format:
                raise SourceMistake(key, f"only files of format {format} have it; {file.source} is {file.format}")


def data_files_among(paths: Iterable[str], format: str) -> list[str]:
    """The sorted `paths` (relative to their root) that hold rows: of a known format, not hidden, no description."""
    return sorted(path for path in paths if _holds_rows(PurePosixPath(path), format))


def _holds_rows(path: PurePosixPath, format: str) -> bool:
    if path.name in _DESCRIPTIONS or any(part.startswith((".", "_")) for part in path.parts):
        return False
    found = format_of(str(path))
    # Texts beside data describe them more often than not, so that they are taken only where they are asked for.
    return found is not None and (format == found or (format == "auto" and found != "text"))


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


def choose_in_folder(names: Iterable[str], format: str, split: str, owner: str, path: str) -> list[str]:
    """The names of the files of `split` among all `names` in the folder `owner`, whose path is written `path`.

    Raises:
        SourceMistake: there are none, or it is not clear which are meant.
    """
    found = list(names)
    paths = data_files_among(found, format)
    if not paths:
        raise no_data_files(found, format, owner)
    groups = group_by_split(paths)
    if groups.get(""):
        raise SourceMistake(
            "path",
            f"{owner} has files that name no split beside files that do: {', '.join(groups[''][:3])}",
            f"say which files to read with a glob, e.g. '{path.rstrip('/')}/{groups[''][0]}'",
        )
    chosen = pick_split(groups, split, owner)
    require_one_format(chosen, owner)
    return chosen


def no_data_files(names: Iterable[str], format: str, owner: str) -> SourceMistake:
    """The error for a folder or dataset none of whose files, called `names`, are read."""
    wanted = "data files" if format == "auto" else f"files of format {format}"
    texts = data_files_among(names, "text") if format == "auto" else []
    hints = ["to read its texts, write `format: text`"] if texts else []
    return SourceMistake("path", f"{owner} has no {wanted}", *hints, f"known suffixes: {', '.join(FORMATS)}")


def pick_split(groups: dict[str, list[str]], split: str, owner: str) -> list[str]:
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
