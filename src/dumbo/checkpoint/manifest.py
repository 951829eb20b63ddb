"""What a checkpoint is: a folder whose manifest lists every file with its size and digest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dumbo.errors import RunError

MANIFEST = "manifest.json"
FORMAT = 1
"""Changes when a checkpoint can no longer be read as before."""
_DIGEST = "digest"
"""The key of the digest of everything else in the manifest."""
_CHUNK = 1 << 22


class Damaged(Exception):
    """A checkpoint that cannot be used; the message says why, for people."""


@dataclass(frozen=True)
class Manifest:
    """What is known about a checkpoint without reading it."""

    step: int
    """Optimizer steps that were done."""
    tokens: int
    """Tokens that were trained on so far, on all ranks."""
    asked: bool
    """Whether the configuration or the user asked for it; others only serve to go on from, and the newest are kept."""
    world_size: int
    data: str | None
    """Digest of all tokens and labels of the run; of a stream, of its first rows and the sizes of its files."""
    frozen: str | None
    """Digest of a sample of the weights that are not in it: those under an adapter."""
    config: Mapping[str, Any]
    """The resolved configuration, without secrets."""
    versions: Mapping[str, str]
    created: str
    """UTC, ISO 8601."""
    format: int = FORMAT
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """Path in the folder -> bytes and BLAKE2b digest (128 bits, hexadecimal)."""

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest in `folder`.

        Raises:
            Damaged: there is none, or it is not as it was written.
            RunError: it is whole, and this version cannot read it, or the system does not let it.
        """
        try:
            found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            if found.pop(_DIGEST) != _digest_of_tree(found):
                raise Damaged("its manifest has changed since it was written")
        except (FileNotFoundError, NotADirectoryError):
            raise Damaged("it has no manifest, so it was not written to its end") from None
        except OSError as error:
            raise _unreadable(folder / MANIFEST, error) from error
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            raise Damaged(f"its manifest cannot be read: {error}") from error
        if found["format"] != FORMAT:
            message = f"{folder} has format {found['format']}, and this version of dumbo reads format {FORMAT}"
            raise RunError(f"{message}\n    go on with the version of dumbo that wrote it")
        files = {name: (int(size), str(digest)) for name, (size, digest) in found.pop("files").items()}
        return cls(**found, files=files)

    def write(self, folder: Path) -> None:
        """Write the manifest and make it durable."""
        tree = json.loads(json.dumps(asdict(self), default=str))
        text = json.dumps({**tree, _DIGEST: _digest_of_tree(tree)}, indent=1)
        with (folder / MANIFEST).open("w", encoding="utf-8") as stream:
            stream.write(text + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        sync_folder(folder)

    def check(self, folder: Path) -> None:
        """Compare every file with the manifest.

        Raises:
            Damaged: one is missing, has another size or other bytes.
            RunError: the system does not let one be read.
        """
        for name, (size, digest) in self.files.items():
            file = folder / name
            try:
                found = file.stat().st_size
                if found != size:
                    raise Damaged(f"{name} has {found:,} bytes instead of {size:,}")
                if digest_of(file) != digest:
                    raise Damaged(f"{name} has changed since it was written")
            except FileNotFoundError:
                raise Damaged(f"{name} is missing") from None
            except OSError as error:
                raise _unreadable(file, error) from error


def _digest_of_tree(tree: Mapping[str, Any]) -> str:
    return hashlib.blake2b(json.dumps(tree, sort_keys=True).encode(), digest_size=16).hexdigest()


def _unreadable(file: Path, error: OSError) -> RunError:
    # Nothing says that it is damaged: another machine, or the same a minute later, may read it.
    hint = "try again, or go on from another checkpoint with --resume --from CHECKPOINT"
    return RunError(f"{file} cannot be read: {error.strerror or error}\n    {hint}")


def sealed_files(folder: Path) -> dict[str, tuple[int, str]]:
    """Make every file in `folder` durable; their sizes and digests."""
    files = {}
    for file in _files(folder):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
        files[file.relative_to(folder).as_posix()] = (file.stat().st_size, digest_of(file))
    for path in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        sync_folder(path)
    return files


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def digest_of(file: Path) -> str:
    """BLAKE2b of the file's bytes, 128 bits, hexadecimal."""
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable, where the system can."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
