"""Whether the files of a source are still those that were looked at when the run began."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dumbo.errors import RunError

_DATA = frozenset(
    {".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow", ".ipc", ".feather", ".txt", ".md"}
    | {".gz", ".zst"}
)
"""Suffixes of files in a folder that may hold rows; a log that grows beside them says nothing."""

_Stamp = tuple[int, int, int]
"""Number of the file, size in bytes, time of the last change in nanoseconds."""


@dataclass(frozen=True)
class FileStamps:
    """What tells that files on this machine were not touched; nothing is known of others."""

    paths: Sequence[str]
    stamps: Mapping[str, _Stamp]

    @classmethod
    def now(cls, paths: Sequence[str]) -> FileStamps:
        """Of all files at `paths`: files, folders, or patterns of them."""
        return cls(paths, _stamps(paths))

    def refuse_changes(self) -> None:
        """Raise a `RunError` that names the first file that was changed, replaced or removed since, or is new."""
        today = _stamps(self.paths)
        for file in sorted({*self.stamps, *today}):
            if self.stamps.get(file) != today.get(file):
                is_new = file not in self.stamps
                became = "is new" if is_new else "was changed" if file in today else "is no longer there"
                hint = "a run that reads its rows again needs them as they were; start it again, or on a copy"
                raise RunError(f"{file} {became} since the run began\n    {hint}")

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """What is read inside is read of the same files, from before the first row to the last, or the `RunError` is
        raised: whatever else went wrong went wrong because of it."""
        self.refuse_changes()
        try:
            yield
        except Exception:
            self.refuse_changes()
            raise
        self.refuse_changes()


def _stamps(paths: Sequence[str]) -> dict[str, _Stamp]:
    found = {}
    for path in paths:
        for file in _files_at(path):
            try:
                facts = file.stat()
            except OSError:
                continue
            found[str(file)] = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
    return found


def _files_at(path: str) -> list[Path]:
    here = Path(path.removeprefix("file://").removeprefix("local://")).expanduser()
    try:
        if here.is_dir():
            return [file for file in here.rglob("*") if _is_data(file.relative_to(here)) and file.is_file()]
        if here.exists():
            return [here]
    except (OSError, ValueError):  # ValueError: a null character
        return []
    # Not `Path.glob`, which takes no absolute pattern.
    return [Path(file) for file in glob.glob(str(here), recursive=True)] if glob.has_magic(path) else []  # noqa: PTH207


def _is_data(path: Path) -> bool:
    """Whether a file in a folder may hold rows: not hidden, and of a kind that readers take."""
    return path.suffix in _DATA and not any(part.startswith((".", "_")) for part in path.parts)
