"""Files on other filesystems, found and read through fsspec."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import fsspec

from dumbo.errors import DumboError, Problem, RunError
from dumbo.plugins.polars.addresses import (
    check_address,
    is_pattern,
    missing_package,
    name_in,
    protocol_of,
    shown_address,
)
from dumbo.plugins.polars.data_files import DataFile, SourceMistake, choose_in_folder, require_format
from dumbo.plugins.polars.local_files import refuse_hub_keys, refuse_split

if TYPE_CHECKING:
    from dumbo.plugins.polars.plugin import PolarsOptions

_READ_AT_ONCE = 1 << 20
# How the filesystems call what stands for a file's bytes.
_VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "checksum")


@dataclass(frozen=True)
class RemoteFile(DataFile):
    """A file on another filesystem."""

    filesystem: Any
    """Of fsspec."""
    name: str
    """As the filesystem knows it."""

    def open(self) -> io.BufferedReader:
        """A stream of its bytes."""
        with explained(self.source):
            return io.BufferedReader(_Guarded(self.filesystem.open(self.name, "rb"), self.source), _READ_AT_ONCE)

    @contextmanager
    def on_disk(self) -> Iterator[Path]:
        """A copy in the folder for temporary files, removed afterwards."""
        with tempfile.NamedTemporaryFile(prefix="dumbo-") as copy:
            with self.open() as stream:
                shutil.copyfileobj(stream, copy, _READ_AT_ONCE)
            copy.flush()
            yield Path(copy.name)

    def fingerprint(self) -> str:
        """What changes with its bytes: what the filesystem has for that, or else their hash."""
        with explained(self.source):
            version = _version(self.filesystem.info(self.name))
        return version or super().fingerprint()


class _Guarded(io.RawIOBase):
    """A stream whose errors say which file they are about."""

    def __init__(self, stream: Any, source: str) -> None:
        super().__init__()
        self._stream, self._source = stream, source

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as there is something to read."""
        with explained(self._source):
            piece = self._stream.read(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        """Close both."""
        if not self.closed:
            self._stream.close()
        super().close()


def find_remote_files(address: str, split: str, options: PolarsOptions) -> list[RemoteFile]:
    """The files of `split` at `address`: a file, a pattern or a folder. Sorted by name.

    Raises `SourceMistake` for what is not there, `RunError` for what the filesystem refuses.
    """
    check_address(address)
    shown = shown_address(address)
    refuse_hub_keys(shown, options, "no dataset on the hub")
    with explained(shown):
        try:
            filesystem, name = fsspec.url_to_fs(address)
        except ImportError as error:
            raise missing_package(protocol_of(address), shown, str(error.name or "of that filesystem")) from error
        if is_pattern(address):
            return _files_of_pattern(filesystem, name, split, shown, options)
        # A page of the web that lists others is no folder.
        if protocol_of(address) not in ("http", "https") and filesystem.isdir(name):
            return _files_in_folder(filesystem, name, split, shown, options)
        refuse_split(split, shown)
        _require_file(filesystem, name, shown)
        return [RemoteFile(shown, _format(shown, options), filesystem, name)]


def _require_file(filesystem: Any, name: str, shown: str) -> None:
    try:
        filesystem.info(name)
    except FileNotFoundError as error:
        # On the web every failure is called so; its cause is what happened.
        if error.__cause__ is None or getattr(error.__cause__, "status", None) == 404:
            raise SourceMistake("path", f"there is no file or folder '{shown}'") from error
        raise error.__cause__ from None


def _files_of_pattern(
    filesystem: Any, pattern: str, split: str, shown: str, options: PolarsOptions
) -> list[RemoteFile]:
    refuse_split(split, shown)
    found = filesystem.glob(pattern, detail=True)
    names = sorted(name for name, info in found.items() if info.get("type") == "file")
    if not names:
        raise SourceMistake("path", f"{'only folders match' if found else 'no file matches'} '{shown}'")
    sources = {name: shown_address(str(filesystem.unstrip_protocol(name))) for name in names}
    return [RemoteFile(sources[name], _format(sources[name], options), filesystem, name) for name in names]


def _files_in_folder(filesystem: Any, folder: str, split: str, shown: str, options: PolarsOptions) -> list[RemoteFile]:
    full = {PurePosixPath(name).relative_to(PurePosixPath(folder)).as_posix(): name for name in filesystem.find(folder)}
    names = choose_in_folder(full, options.format, split, f"folder '{shown}'", shown)
    sources = {name: f"{shown.rstrip('/')}/{name}" for name in names}
    return [RemoteFile(sources[name], _format(sources[name], options), filesystem, full[name]) for name in names]


def _format(source: str, options: PolarsOptions) -> str:
    return require_format(name_in(source), options.format)


def _version(info: Mapping[str, Any]) -> str | None:
    """What stands for the bytes of a file; of a weak tag of the web that is not said."""
    for key in _VERSIONS:
        value = info.get(key)
        if value and not str(value).startswith("W/"):
            return f"{key.lower()}:{value}:{info.get('size')}"
    return None


@contextmanager
def explained(source: str) -> Iterator[None]:
    """Turn what a filesystem raises inside into errors that name `source`, and repeat no address."""
    try:
        yield
    except (DumboError, SourceMistake):
        raise
    except FileNotFoundError as error:
        raise RunError(f"{source}: there is no such file") from error
    except Exception as error:  # every filesystem has exceptions of its own
        said = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else ""
        status = getattr(error, "status", None)
        reason = said or (f"HTTP {status}" if isinstance(status, int) else type(error).__name__)
        hint = "credentials are taken from the environment, as the package of the filesystem documents"
        hints = () if said and not isinstance(error, PermissionError) else (hint,)
        raise RunError(str(Problem(f"{source}: cannot be read: {reason}", hints=hints))) from error
