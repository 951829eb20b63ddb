"""`run.lock`: one process owns a run's folder while it runs; that of a process that died is taken over."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import platform
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from dumbo.console import printable
from dumbo.errors import RunError

try:
    import fcntl
except ImportError:  # Windows: the heartbeat alone tells who lives.
    fcntl = None  # type: ignore[assignment]

LOCK_NAME = "run.lock"
_BEAT = 30.0
"""Seconds between two signs of life of an owner."""
_DEAD_AFTER = 120.0
"""Seconds without a sign of life after which an owner on another machine counts as dead."""
_ATTEMPTS, _PAUSE = 6, 0.1
"""How often, and at which distance in seconds, a lock is asked for: who only looks whether it is held has it for a
moment."""


@dataclass(frozen=True)
class Owner:
    """The process that holds a run's folder."""

    pid: int
    host: str
    machine: str
    """The machine since its last start, which containers share; empty where the system does not tell."""
    user: str
    since: str
    """UTC, as in `2026-11-21T05:30:00Z`."""
    config: str
    """The configuration that it was started with."""

    @classmethod
    def this_process(cls, config: str = "") -> Owner:
        """Who we are."""
        since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return cls(os.getpid(), platform.node(), _machine(), _user(), since, config)

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran, on this machine, so that the system knows whether it lives."""
        return self.machine == _machine() if self.machine else self.host == platform.node()

    def __str__(self) -> str:
        return f"process {self.pid} of {self.user} on {self.host}, since {self.since}"


class FolderInUse(RunError):
    """A living process holds the folder."""

    def __init__(self, folder: Path, owner: Owner | None) -> None:
        self.owner = owner
        """None where its lock cannot be read."""
        self.message = f"{folder} is in use by {owner or 'another process'}"
        self.hint = "wait until it has ended, or stop it; or name another folder"
        if owner is None or not owner.is_here:
            self.hint += f"; where it died with its machine, start again in {_DEAD_AFTER / 60:.0f} minutes"
        if owner is not None and owner.config:
            self.message += f" ({owner.config})"
        super().__init__(f"{self.message}\n    {self.hint}")


class RunLock:
    """The lock of a folder, held until `release` or the end of this process, however it ends.

    The file names its owner, and carries the system's own lock (`flock`), which death frees. Not every file system
    shares that between machines: the owner also touches the file every half minute, and one on another machine counts
    as alive while the file is fresh. That is measured by the file system's clock and not by this machine's.
    """

    def __init__(self, folder: Path, descriptor: int, beat: float) -> None:
        """Use `take`."""
        self.folder = folder
        self._descriptor: int | None = descriptor
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._live, args=(descriptor, beat), name="dumbo-run-lock", daemon=True)
        self._heart.start()
        if hasattr(os, "register_at_fork"):
            # A worker that outlives us must not hold our lock.
            mine = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: _forget(mine))

    @classmethod
    def take(cls, folder: Path, config: str = "", *, beat: float = _BEAT) -> RunLock:
        """Hold `folder`, which is made if it is not there. `config` is what the process was started with, for those
        that come later; `beat` is the time between signs of life, in seconds.

        Raises:
            FolderInUse: another process holds it.
            OSError: nothing can be written there.
            ValueError: the path has a null character.
        """
        draft, descriptor = _draft(folder, Owner.this_process(config))
        try:
            _claim(folder, draft, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        finally:
            draft.unlink(missing_ok=True)
        return cls(folder, descriptor, beat)

    def release(self) -> None:
        """Give the folder free; a second time nothing happens."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        self._ended.set()
        self._heart.join(timeout=_PAUSE * 50)  # A disk that hangs must not keep the run from ending.
        file = self.folder / LOCK_NAME
        with contextlib.suppress(OSError):
            if _is_file(descriptor, file):
                file.unlink()  # Before it is free: whoever waited for this file then sees that it is not the lock.
        os.close(descriptor)

    def forget(self) -> None:
        """In a process that was forked from the owner: hold nothing."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def _live(self, descriptor: int, beat: float) -> None:
        while not self._ended.wait(beat):
            with contextlib.suppress(OSError):
                _touch(descriptor, self.folder / LOCK_NAME)


def _forget(reference: weakref.ref[RunLock]) -> None:
    lock = reference()
    if lock is not None:
        lock.forget()


@contextlib.contextmanager
def hold_run(folder: Path, config: str = "") -> Iterator[RunLock]:
    """Hold `folder` inside; raises as `RunLock.take` does."""
    lock = RunLock.take(folder, config)
    try:
        yield lock
    finally:
        lock.release()


def owner_of(folder: Path) -> Owner | None:
    """The living process that holds `folder`; None where nobody does. Nothing waits, and no lock is taken over.

    Raises:
        FolderInUse: somebody holds it, and nobody knows who.
    """
    file = folder / LOCK_NAME
    try:
        descriptor = os.open(file, os.O_RDONLY)
    except (OSError, ValueError):
        return None
    try:
        owner = _read(descriptor)
        if not _lives(owner, descriptor, _try_lock(descriptor, shared=True), folder):
            return None
        if owner is None:
            raise FolderInUse(folder, None)
        return owner
    finally:
        os.close(descriptor)


def _draft(folder: Path, owner: Owner) -> tuple[Path, int]:
    """A file in `folder` that is locked and says whose it is, and is not yet the folder's lock."""
    for attempt in range(_ATTEMPTS):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            draft = folder / f".{LOCK_NAME}.{os.getpid()}-{os.urandom(4).hex()}"
            descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            break
        except FileNotFoundError:  # A run that ended with nothing has just removed its folder.
            if attempt == _ATTEMPTS - 1:
                raise
    try:
        _try_lock(descriptor, shared=False)
        os.write(descriptor, (json.dumps(asdict(owner)) + "\n").encode())
    except OSError:
        os.close(descriptor)
        draft.unlink(missing_ok=True)
        raise
    return draft, descriptor


def _claim(folder: Path, draft: Path, descriptor: int) -> None:
    """Make `draft` the lock of `folder`, in the place of a dead owner's if there is one."""
    owner: Owner | None = None
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_PAUSE)
        if _place(draft, folder / LOCK_NAME):
            return
        is_placed, owner = _displace(folder, draft, descriptor)
        if is_placed:
            return
    raise FolderInUse(folder, owner)


def _place(draft: Path, file: Path) -> bool:
    """Put the lock where none is; whether that went well. It is there whole and locked, or not at all."""
    try:
        os.link(draft, file)
    except FileExistsError:
        return False
    except OSError:  # A file system without links: an empty file is there for a moment, which counts as somebody's.
        try:
            os.close(os.open(file, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        draft.replace(file)
    return True


def _displace(folder: Path, draft: Path, descriptor: int) -> tuple[bool, Owner | None]:
    """Put `draft` where a dead owner's lock is; whether that went well, and the living owner where it did not."""
    file = folder / LOCK_NAME
    try:
        old = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return False, None
    try:
        had = _try_lock(old, shared=False)
        owner = _read(old)
        if not _is_file(old, file) or _lives(owner, old, had, folder):
            return False, owner
        draft.replace(file)
        if had and owner is not None and owner.is_here:
            return True, None
        time.sleep(2 * _PAUSE)  # Where the lock is not shared, several may come to this point: the last one has it.
        return _is_file(descriptor, file), None
    finally:
        os.close(old)


def _lives(owner: Owner | None, descriptor: int, had: bool | None, folder: Path) -> bool:
    """Whether the owner of the lock file lives; `had` is what `_try_lock` said to it."""
    if had is False:
        return True
    if had and owner is not None and owner.is_here:
        return False
    beat = os.fstat(descriptor).st_mtime
    # A file of the future is one from before its file system's clock was put back: nobody has touched it since.
    return abs(_now_in(folder) - beat) < _DEAD_AFTER


def _now_in(folder: Path) -> float:
    """The time by the clock that dates the files in `folder`, where one can be written there."""
    try:
        with tempfile.NamedTemporaryFile(prefix=f".{LOCK_NAME}.", dir=folder) as probe:
            _touch(probe.fileno(), Path(probe.name))
            return os.fstat(probe.fileno()).st_mtime
    except OSError:
        return time.time()


def _touch(descriptor: int, file: Path) -> None:
    """Date a file by its file system's clock."""
    os.utime(descriptor if os.utime in os.supports_fd else file)


def _try_lock(descriptor: int, *, shared: bool) -> bool | None:
    """Lock a file; False if another process holds it, None where files cannot be locked."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_file(descriptor: int, file: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), file.stat())
    except OSError:
        return False


def _read(descriptor: int) -> Owner | None:
    """The owner that a lock file names; None where it names none."""
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        said = json.loads(os.read(descriptor, 65536))
        texts = [printable(str(said.get(name, ""))) for name in ("host", "machine", "user", "since", "config")]
        return Owner(int(said["pid"]), *texts)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _machine() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # A container's user often has no name.
        return str(getattr(os, "getuid", lambda: "somebody")())
