"""What changes whenever the rows of an entry do: commits on the hub, and the bytes of files on this machine."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import datasets

from dumbo.bridge.hub_errors import Repository, explain
from dumbo.errors import ConfigError, DumboError, RunError
from dumbo.plugins.huggingface.reading import find_commit, quiet
from dumbo.plugins.huggingface.sources import Kind, files_of, kind_of, parts_of, source_mistakes

if TYPE_CHECKING:
    from dumbo.plugins.huggingface.plugin import HuggingfaceOptions

# Goes up whenever other rows would be read of the same files with the same options.
_VERSION = 1


def fingerprint_rows(options: HuggingfaceOptions) -> str | None:
    """A text that is another one whenever the rows are; None for files at addresses, which cannot be known."""
    for mistake in source_mistakes(options):
        raise ConfigError.at(f".{mistake.key}", mistake.message, *mistake.hints)
    if any("://" in name for name in (*files_of(options), options.data_dir or "")):
        return None
    kind = kind_of(options.path)
    content = [_commit(options)] if kind is Kind.HUB else list(_contents(options, kind))
    parts = [str(part) for part in parts_of(options)]
    asked = [kind.name, options.path if kind in (Kind.HUB, Kind.FILES) else "", options.name, options.data_dir]
    # How files become rows is the business of Datasets, and may change with its version.
    text = json.dumps([_VERSION, datasets.__version__, asked, files_of(options), parts, content])
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()


def _commit(options: HuggingfaceOptions) -> str | None:
    try:
        with quiet():
            return find_commit(options)
    except DumboError:
        raise
    except Exception as error:  # the hub's client lets through what its libraries for HTTP raise
        raise explain(error, Repository("dataset", options.path, options.revision)) from error


def _contents(options: HuggingfaceOptions, kind: Kind) -> Iterator[list[str]]:
    """The name and the hash of every file that may be read; names say splits.

    Of a folder all files count, as its card may say how the others are read.
    """
    root = Path("" if kind is Kind.FILES else options.path).expanduser()
    start = root / Path(options.data_dir or "").expanduser()
    paths = list(_given_files(start, files_of(options)))
    if kind is not Kind.FILES:
        paths += sorted(root.rglob("*"))
    elif not files_of(options):
        paths = sorted(start.rglob("*"))
    for path in paths:
        if path.is_file():
            name = path.relative_to(root) if path.is_relative_to(root) else path
            try:
                with path.open("rb") as stream:
                    yield [str(name), hashlib.file_digest(stream, "blake2b").hexdigest()]
            except OSError as error:
                raise RunError(f"{path}: cannot be read: {error.strerror or error}") from error


def _given_files(start: Path, files: Sequence[str]) -> Iterator[Path]:
    for file in files:
        pattern = str(start / Path(file).expanduser())
        # Not `Path.glob`, which takes no absolute pattern.
        found = sorted(glob.glob(pattern, recursive=True)) if glob.has_magic(pattern) else [pattern]  # noqa: PTH207
        yield from map(Path, found)
