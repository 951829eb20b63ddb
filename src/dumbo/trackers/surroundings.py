"""The surroundings of a tracker's library: environment variables for a while, folders and files that must be there."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from dumbo.errors import ConfigError


@contextlib.contextmanager
def variables(*, replace: bool = False, **values: str) -> Iterator[None]:
    """Set environment variables inside; those that the user has set only to `replace` them. Afterwards all is as
    before."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: value for name, value in values.items() if replace or before[name] is None})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What Python code prints inside is not seen."""
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def writable_folder(folder: Path, key: str) -> Path:
    """Make `folder`, which the option `key` names, and see that files can be made in it.

    Raises:
        ConfigError: they cannot.
    """
    probe = folder / f".write-test-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except (OSError, ValueError) as error:  # ValueError: a null character
        message = f"{folder} cannot be written to: {getattr(error, 'strerror', None) or error}"
        raise ConfigError.at(key, message, "name a folder that you may write to") from error
    return folder


def remove_if_within(folder: Path, home: Path) -> None:
    """Remove `folder` if it lies in `home`, and the folders between them that are empty then."""
    folder, home = folder.resolve(), home.resolve()
    if folder == home or not folder.is_relative_to(home):
        return
    shutil.rmtree(folder, ignore_errors=True)
    for parent in folder.parents:
        if parent == home or any(parent.iterdir()):
            break
        parent.rmdir()


class KeptFile:
    """A file that somebody writes and that must not vanish: on Linux, writing into a removed file succeeds."""

    def __init__(self, file: Path) -> None:
        """`file` exists."""
        self._file = file
        self._descriptor = os.open(file, os.O_RDONLY)

    def check(self) -> None:
        """Raise `OSError` if the file was removed or replaced."""
        mine = os.fstat(self._descriptor)
        if mine.st_nlink == 0 or not self._is_still(mine):
            raise FileNotFoundError(f"{self._file} was removed while the run wrote to it")

    def close(self) -> None:
        """Look no longer."""
        os.close(self._descriptor)

    def _is_still(self, mine: os.stat_result) -> bool:
        with contextlib.suppress(OSError):
            now = self._file.stat()
            return stat.S_ISREG(now.st_mode) and (now.st_dev, now.st_ino) == (mine.st_dev, mine.st_ino)
        return False
