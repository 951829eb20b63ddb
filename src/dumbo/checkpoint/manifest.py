"""What a checkpoint is: a folder whose manifest lists every file with its size and digest."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
FORMAT = 1
"""Changes when a checkpoint can no longer be read as before."""
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
    """Digest of all tokens and labels of the run; None for a stream, which cannot be read for it."""
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
            Damaged: there is none that this version can read.
        """
        try:
            found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            files = {name: (int(size), str(digest)) for name, (size, digest) in found.pop("files").items()}
            manifest = cls(**found, files=files)
        except FileNotFoundError:
            raise Damaged("it has no manifest, so it was not written to its end") from None
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise Damaged(f"its manifest cannot be read: {error}") from error
        if manifest.format != FORMAT:
            raise Damaged(f"it has format {manifest.format}, and this version of dumbo reads format {FORMAT}")
        return manifest

    def write(self, folder: Path) -> None:
        """Write the manifest and make it durable."""
        text = json.dumps(asdict(self), indent=1, default=str)
        with (folder / MANIFEST).open("w", encoding="utf-8") as stream:
            stream.write(text + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        sync_folder(folder)

    def check(self, folder: Path) -> None:
        """Compare every file with the manifest.

        Raises:
            Damaged: one is missing, has another size or other bytes.
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
                raise Damaged(f"{name} cannot be read: {error.strerror or error}") from error


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
