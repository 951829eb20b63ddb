"""Disks that are nearly full: how much room there is, and files of lines that survive one."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from dumbo.errors import RunError
from dumbo.memory import size


def free_space(path: Path) -> int:
    """Bytes that this user may still write where `path` is, or will be once its folders are made."""
    there = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(there).free


def warn_of_little_space(folder: Path, needed: int, say: Callable[[str], None]) -> None:
    """Say so if the disk of `folder` has no room for `needed` bytes."""
    free = free_space(folder)
    if free < needed:
        say(f"the disk is nearly full: saving needs about {size(needed)}, and {folder} has room for {size(free)}")


@contextmanager
def naming_refusals(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses while the model is written to `folder` into a `RunError`; what was written half is
    removed."""
    try:
        yield
    except Exception as error:
        # The library behind safetensors has errors of its own, for which there is no class but this one.
        if not isinstance(error, OSError) and type(error).__name__ != "SafetensorError":
            raise
        shutil.rmtree(folder.with_name(f"{folder.name}.partial"), ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error)
        room = f"{folder.parent} has room for {size(free_space(folder))}"
        raise RunError(f"the model could not be written to {folder}: {reason}\n    {room}") from error


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """The path to write `file` to: it gets its own name when it is whole, and is removed where it is not."""
    partial = file.with_name(f"{file.name}.partial")
    try:
        yield partial
        partial.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


class LineFile:
    """A file to which whole lines are appended. Lines that the disk refuses wait for the next one; half a line is never
    in the file."""

    def __init__(self, path: Path, say: Callable[[str], None], keep: int = 0) -> None:
        """`say` is told once for each time that the disk gets full; of a file that is there, the first `keep` bytes
        stay."""
        self._path, self._say = path, say
        self._file = path.open("ab", buffering=0)
        self._file.truncate(min(keep, self._file.seek(0, os.SEEK_END)))
        self.size = self._file.seek(0, os.SEEK_END)
        """Bytes of whole lines."""
        self._waiting: list[bytes] = []

    def write(self, line: str) -> None:
        """Append `line`, which has no line end, and what waited."""
        was_waiting = bool(self._waiting)
        self._waiting.append(f"{line}\n".encode())
        error = self._write_waiting()
        if error is not None and not was_waiting:
            reason = error.strerror or error
            self._say(f"{self._path.name} cannot be written: {reason}; its lines wait until there is room")

    def close(self) -> None:
        """Write what waited, or say that it is lost."""
        try:
            if self._write_waiting() is not None:
                self._say(f"the last {len(self._waiting)} lines of {self._path.name} are lost: the disk is full")
        finally:
            self._file.close()

    def _write_waiting(self) -> OSError | None:
        try:
            while self._waiting:
                self._append(self._waiting[0])
                del self._waiting[0]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self.size)
                self._file.seek(self.size)
            return error
        return None

    def _append(self, line: bytes) -> None:
        written = 0
        while written < len(line):  # A disk that gets full takes a part of what it is given.
            written += self._file.write(line[written:])
        self.size += len(line)
