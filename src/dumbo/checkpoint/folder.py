"""The checkpoints of a run: written under another name until they are whole, removed when newer ones are."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from dumbo.checkpoint.manifest import Damaged, Manifest, sealed_files, sync_folder
from dumbo.errors import RunError
from dumbo.run_folder import checkpoints_of

ROLLING = 2
"""Checkpoints that nobody asked for are kept until there are so many newer ones."""
_ENDINGS = (".partial", ".removed", ".replaced")
_ASIDE = ".aside"


class Checkpoints:
    """Writes the checkpoints of one run, one at a time; used on the first rank alone."""

    def __init__(self, run_folder: Path, limit: int | None, say: Callable[[str], None], background: bool) -> None:
        """`limit`: how many of those that were asked for are kept. `background`: files are made durable, counted and
        given their name while the training goes on."""
        self.folder = run_folder / "checkpoints"
        self._run_folder, self._limit, self._say, self._background = run_folder, limit, say, background
        self._thread: threading.Thread | None = None
        self._failure: Exception | None = None
        self._size = 0
        self.last_step: int | None = None
        """The step of the last whole checkpoint that was written here."""

    def written(self, step: int) -> Path | None:
        """The whole checkpoint of `step`, if the last that was written here is that."""
        return self.folder / f"step-{step:06}" if self.last_step == step else None

    def begin(self, step: int) -> Path:
        """An empty folder to write the checkpoint of `step` into.

        Raises:
            OSError: it cannot be made, there is too little room for one like the last, or the last one failed.
        """
        self.wait()
        partial = self.folder / f"step-{step:06}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if free < self._size:
            raise OSError(f"{free / 2**20:,.0f} MiB are free, and the last checkpoint took {self._size / 2**20:,.0f}")
        partial.mkdir()
        return partial

    def finish(self, partial: Path, manifest: Manifest, at_once: bool = False) -> None:
        """Make what was written into `partial` a checkpoint, now (`at_once`) or in the background."""
        if self._background and not at_once:
            self._thread = threading.Thread(target=self._seal, args=(partial, manifest), name="checkpoint")
            self._thread.start()
            return
        self._seal(partial, manifest)
        self.wait()

    def wait(self) -> None:
        """Wait until the last checkpoint is whole.

        Raises:
            OSError: it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _seal(self, partial: Path, manifest: Manifest) -> None:
        try:
            files = sealed_files(partial)
            replace(manifest, files=files).write(partial)
            put_in_place(partial)
            self.last_step = manifest.step
            self._size = sum(size for size, _ in files.values())
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            self._failure = error
            return
        try:
            self._remove_old()
        except OSError as error:
            self._say(f"an old checkpoint could not be removed: {error}")

    def _remove_old(self) -> None:
        """Remove checkpoints over the limits."""
        asked: list[Path] = []
        rolling: list[Path] = []
        for path in checkpoints_of(self._run_folder):
            with contextlib.suppress(Damaged, RunError):
                (asked if Manifest.read(path).asked else rolling).append(path)
        too_many = asked[: -self._limit] if self._limit is not None else []
        for path in [*too_many, *rolling[:-ROLLING]]:
            remove(path)


def put_in_place(partial: Path) -> None:
    """Give a whole folder its name, in the place of one that has it; at every moment one of the two is there."""
    target = partial.with_suffix("")
    replaced = partial.with_suffix(".replaced")
    if target.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        target.rename(replaced)
    partial.rename(target)
    sync_folder(target.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def remove(checkpoint: Path) -> None:
    """Remove a checkpoint so that no half of it is ever taken for a whole one."""
    removed = checkpoint.with_name(f"{checkpoint.name}.removed")
    shutil.rmtree(removed, ignore_errors=True)
    checkpoint.rename(removed)
    shutil.rmtree(removed, ignore_errors=True)


def remove_rolling(run_folder: Path) -> None:
    """Remove the checkpoints that served only to go on from: the run has ended well."""
    for path in checkpoints_of(run_folder):
        with contextlib.suppress(Damaged, RunError, OSError):
            if not Manifest.read(path).asked:
                remove(path)


def tidy(run_folder: Path) -> None:
    """Remove what a process that was killed has left half done, and give back its name to a checkpoint that was about
    to be replaced."""
    for path in list((run_folder / "checkpoints").glob("*")):
        if path.suffix == ".replaced" and not path.with_suffix("").exists():
            path.rename(path.with_suffix(""))
        elif path.suffix in _ENDINGS:
            shutil.rmtree(path, ignore_errors=True)


def take_up(run_folder: Path, checkpoint: Path, step: int) -> tuple[Path, list[Path]]:
    """Make `checkpoint`, that of `step`, the last of the run. The whole ones after it are set aside: nothing takes them
    for the run's any more, and nothing removes them. One that was set aside gets its name back.

    Returns:
        The checkpoint, and the new names of the others.
    """
    name, aside = run_folder / "checkpoints" / f"step-{step:06}", []
    is_aside = checkpoint.name.startswith(f"{name.name}{_ASIDE}")
    for path in checkpoints_of(run_folder):
        with contextlib.suppress(Damaged):
            if Manifest.read(path).step > step or (is_aside and path.name == name.name):
                aside.append(path.rename(_free_name(path.with_name(f"{path.name}{_ASIDE}"))))
    return checkpoint.rename(name) if is_aside else checkpoint, aside


def _free_name(path: Path) -> Path:
    names = itertools.chain([path], (path.with_name(f"{path.name}-{number}") for number in itertools.count(2)))
    return next(name for name in names if not name.exists())


def whole_checkpoints(run_folder: Path, say: Callable[[str], None]) -> Iterator[tuple[Path, Manifest]]:
    """The checkpoints that can be used, the newest first; `say` is told why others cannot.

    Raises:
        RunError: nobody can say whether one can be used.
    """
    for path in reversed(checkpoints_of(run_folder)):
        try:
            manifest = Manifest.read(path)
            manifest.check(path)
        except Damaged as damage:
            say(f"{path} is skipped: {damage}")
            continue
        yield path, manifest
