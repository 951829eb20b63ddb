"""Find the files of a local path: a file, a folder or a glob. Only names are looked at, nothing is opened."""

from __future__ import annotations

import glob
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from dumbo.local_paths import is_hub_name, near_paths
from dumbo.plugins.polars.data_files import (
    COMPRESSIONS,
    FORMATS,
    LocalFile,
    SourceMistake,
    choose_in_folder,
    require_format,
)

if TYPE_CHECKING:
    from dumbo.plugins.polars.plugin import PolarsOptions

# Suffixes of files that somebody may well point at by mistake; a hub dataset may have any other dot in its name.
_FILE_SUFFIXES = frozenset({*FORMATS, *COMPRESSIONS, ".bz2", ".xz", ".zip", ".tar", ".xlsx", ".yaml", ".py"})
_LOCAL = ("file://", "local://")


def is_hub_dataset(path: str) -> bool:
    """Whether `path` is a dataset on the hub: a name as the hub has them, and not that of a file that is missing."""
    return is_hub_name(path) and PurePosixPath(path).suffix.lower() not in _FILE_SUFFIXES


def without_protocol(path: str) -> str:
    """`path` without the `file://` before it."""
    for protocol in _LOCAL:
        path = path.removeprefix(protocol)
    return path


def refuse_hub_keys(path: str, options: PolarsOptions, what: str) -> None:
    """Raise `SourceMistake` for `name` and `revision` beside a `path` that is `what`: they would do nothing."""
    for key in ("name", "revision"):
        if getattr(options, key) is not None:
            raise SourceMistake(key, f"only datasets on the hub have a {key}; '{path}' is {what}")


def refuse_split(split: str, path: str) -> None:
    """Raise `SourceMistake` for the name of a split beside a file or a pattern; all their rows are `train`."""
    if split not in ("", "train"):
        raise SourceMistake(
            "split",
            f"only folders and datasets on the hub have splits; '{path}' has none",
            "a part of its rows is written without a name, e.g. split: '[:1000]'",
        )


def find_local_files(written: str, split: str, options: PolarsOptions) -> list[LocalFile]:
    """The files of `split` (by default `train`) at the local path `written`, sorted by name.

    Raises `SourceMistake` naming the option that is wrong.
    """
    refuse_hub_keys(written, options, "a local path")
    path = Path(without_protocol(written)).expanduser()
    try:
        return _files_at(path, written, split, options.format)
    except OSError as error:
        raise SourceMistake("path", f"cannot look at '{written}': {error.strerror}") from error


def _files_at(path: Path, written: str, split: str, format: str) -> list[LocalFile]:
    if path.is_dir():
        return _files_in_folder(path, written, split, format)
    refuse_split(split, written)
    if path.is_file():
        return [_data_file(path, format)]
    if path.exists():
        raise SourceMistake("path", f"'{written}' is neither a file nor a folder")
    if glob.has_magic(str(path)):
        return _files_of_glob(path, written, format)
    raise _missing(path, written)


def _files_of_glob(pattern: Path, written: str, format: str) -> list[LocalFile]:
    # Not `Path.glob`: it takes no absolute pattern, and raises for `**.jsonl`.
    matches = [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207
    files = [match for match in matches if match.is_file()]
    if not files:
        found = "only folders match" if matches else "no file matches"
        raise SourceMistake("path", f"{found} '{written}'", _start(pattern))
    return [_data_file(file, format) for file in files]


def _files_in_folder(folder: Path, written: str, split: str, format: str) -> list[LocalFile]:
    names = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    chosen = choose_in_folder(names, format, split, f"folder '{written}'", written)
    return [_data_file(folder / name, format) for name in chosen]


def _data_file(path: Path, format: str) -> LocalFile:
    return LocalFile(_shown(path), require_format(_shown(path), format), path)


def _shown(path: Path) -> str:
    """`path` from the current directory where it is under it."""
    here = Path.cwd()
    absolute = here / path
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(path)


def _missing(path: Path, written: str) -> SourceMistake:
    if not path.parent.exists():
        # The first folder that does not exist is where the mistake is.
        while not path.parent.exists():
            path = path.parent
        message = f"no such file or folder: '{written}' (there is no '{path}')"
    else:
        message = f"no such file or folder: '{written}'"
    bare = ["datasets on the hub are written owner/name"] if "/" not in written and "." not in written else []
    return SourceMistake("path", message, *near_paths(path), *bare, _start(path))


def _start(path: Path) -> str:
    return f"looked in {path.parent}" if path.is_absolute() else f"relative paths start at {Path.cwd()}"
