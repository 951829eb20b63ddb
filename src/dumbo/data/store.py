"""Prepared sources in a folder: each under its key, written by one process at a time, whole or not there at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from dumbo.data.columns import Column
from dumbo.data.encoded import EncodedRows, RowWriter, read_rows
from dumbo.data.records import Example
from dumbo.errors import RunError

if TYPE_CHECKING:
    from dumbo.config.schema import RunConfig

VARIABLE = "DUMBO_CACHE"
"""The environment variable that names the folder of the cache."""

KEY = re.compile("(once-)?[0-9a-f]{32}")
"""The names of folders of prepared sources."""

_ABOUT, _PARTIAL, _LOCK, _ROWS = "about.json", ".partial", ".lock", ".rows.json"


def cache_folder() -> Path:
    """Where the cache is unless a configuration says otherwise: `$DUMBO_CACHE`, else in the user's own cache."""
    named = os.environ.get(VARIABLE)
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dumbo"


def open_store(config: RunConfig) -> Store | None:
    """The cache that a run keeps its prepared sources in; None where it is to keep none.

    Raises:
        RunError: its folder cannot be made or written to.
    """
    wanted = config.trainer.data.cache
    if wanted is False:
        return None
    return Store(cache_folder() if wanted is True else Path(wanted).expanduser())


@dataclass(frozen=True)
class Prepared:
    """A prepared source as `dumbo cache` lists it."""

    key: str
    source: str
    """Nothing where it is unfinished."""
    rows: int
    tokens: int
    bytes: int
    used: float
    """When it was last made or used, in seconds since 1970."""


@dataclass(frozen=True)
class Store:
    """Prepared sources by their keys in `folder`."""

    folder: Path
    advice: str = f"name another folder by {VARIABLE} or trainer.data.cache, or write trainer.data.cache: false"
    """What to do where the folder cannot be written to."""

    def __post_init__(self) -> None:
        """Make the folder.

        Raises:
            RunError: it cannot be made or written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / f".write-test-{os.getpid()}"
            probe.write_text("")
            probe.unlink()
        except OSError as error:
            message = f"the folder of prepared data {self.folder} cannot be written to: {error.strerror or error}"
            raise RunError(f"{message}\n    {self.advice}") from error

    def find(self, key: str) -> EncodedRows | None:
        """What is prepared under `key`; None where nothing is, or nothing whole."""
        folder = self.folder / key
        try:
            rows = read_rows(folder)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        with suppress(OSError):  # Somebody else's, who shares the cache.
            os.utime(folder / _ABOUT)
        return rows

    @contextmanager
    def writing(self, key: str, say: Callable[[str], None]) -> Iterator[Path]:
        """A folder to write what is to be found under `key`, for one process at a time; what another one has left
        half done is in it.

        Raises:
            RunError: the disk refuses.
        """
        try:
            lock = FileLock(self.folder / f"{key}{_LOCK}")
            try:
                lock.acquire(timeout=1)
            except Timeout:
                say("another process is preparing the same source: waiting for it")
                lock.acquire()
            folder = self.folder / f"{key}{_PARTIAL}"
            try:
                folder.mkdir(exist_ok=True)
                yield folder
            finally:
                with suppress(OSError):  # Nothing was written, or all of it is settled.
                    folder.rmdir()
                lock.release()
        except OSError as error:
            raise RunError(f"data cannot be kept in {self.folder}: {error.strerror or error}") from error

    def settle(self, key: str, source: str, rows: EncodedRows) -> EncodedRows:
        """What was written of `source` is whole: from now on it is found. To be called while it is being written."""
        partial, folder = self.folder / f"{key}{_PARTIAL}", self.folder / key
        about = {"source": source, "rows": len(rows.dataset), "tokens": rows.dataset.num_tokens}
        (partial / _ABOUT).write_text(json.dumps(about), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # There was one that cannot be read.
        partial.rename(folder)
        return read_rows(folder)

    def copy(self, key: str, rows: EncodedRows, source: str) -> EncodedRows:
        """The rows, written under `key`."""
        with self.writing(key, lambda text: None) as folder:
            writer = RowWriter(folder)
            for index in range(len(rows.dataset)):
                row = rows.dataset[index]
                columns = {name: Column(row[name], kind.default) for name, kind in rows.dataset.column_types.items()}
                writer.add(Example(row["input_ids"], row["labels"], rows.origin(index), columns=columns))
                if writer.is_full:
                    writer.flush({})
            writer.add_counts(rows.counts)
            return self.settle(key, source, writer.finish(rows.facts))

    def write_whole(self, name: str, text: str) -> None:
        """Write a file of the folder, under a temporary name until it is whole.

        Raises:
            RunError: the disk refuses.
        """
        partial = self.folder / f"{name}.{os.getpid()}"
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(self.folder / name)
        except OSError as error:
            raise RunError(f"{self.folder / name} cannot be written: {error.strerror or error}") from error

    def find_rows(self, key: str) -> dict[str, Any] | None:
        """What was noted of the records with this key; None where nothing was."""
        file = self.folder / f"{key}{_ROWS}"
        try:
            facts = json.loads(file.read_text(encoding="utf-8"))
            known = isinstance(facts["records"], int) and isinstance(facts["bad"], int)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        with suppress(OSError):
            os.utime(file)
        return facts if known else None

    def note_rows(self, key: str, facts: Mapping[str, Any]) -> None:
        """Note that all records with this key have been gone through, and what was found."""
        self.write_whole(f"{key}{_ROWS}", json.dumps(dict(facts)))

    def entries(self) -> list[Prepared]:
        """All prepared sources, the last used first; then what is unfinished, or being written."""
        whole = [self._entry(about.parent) for about in self.folder.glob(f"*/{_ABOUT}")]
        begun = [self._entry(folder) for folder in self.folder.glob(f"*{_PARTIAL}")]
        return [
            *sorted((entry for entry in whole if entry is not None), key=lambda entry: -entry.used),
            *sorted((entry for entry in begun if entry is not None), key=lambda entry: -entry.used),
        ]

    def _entry(self, folder: Path) -> Prepared | None:
        key = folder.name.removesuffix(_PARTIAL)
        if not KEY.fullmatch(key):
            return None  # It is somebody else's.
        try:
            size = sum(file.stat().st_size for file in folder.iterdir())
            if folder.name != key:
                return Prepared(key, "", 0, 0, size, folder.stat().st_mtime)
            about = folder / _ABOUT
            facts = json.loads(about.read_text(encoding="utf-8"))
            return Prepared(key, facts["source"], facts["rows"], facts["tokens"], size, about.stat().st_mtime)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def remove(self, key: str) -> bool:
        """Remove a prepared source, unless it is being written; runs that read it go on."""
        lock = FileLock(self.folder / f"{key}{_LOCK}")
        try:
            with lock.acquire(timeout=0):
                shutil.rmtree(self.folder / key, ignore_errors=True)
                shutil.rmtree(self.folder / f"{key}{_PARTIAL}", ignore_errors=True)
                Path(lock.lock_file).unlink(missing_ok=True)
        except Timeout:
            return False
        return True

    def keep_only(self, keys: Collection[str]) -> None:
        """Remove everything else."""
        for entry in self.entries():
            if entry.key not in keys:
                self.remove(entry.key)
        self.forget_rows()

    def forget_rows(self, before: float = float("inf")) -> None:
        """Remove what was noted of records before that time."""
        for file in self.folder.glob(f"*{_ROWS}"):
            if file.stat().st_mtime < before:
                file.unlink(missing_ok=True)
