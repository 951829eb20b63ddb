"""Find the files of a local path: a file, a folder or a glob. Only names are looked at, nothing is opened."""

from __future__ import annotations

import glob
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from dumbo.local_paths import is_hub_name, near_paths
from dumbo.plugins.polars.data_files import (
    FORMATS,
    DataFile,
    SourceMistake,
    data_files_among,
    group_by_split,
    pick_split,
    require_format,
    require_json,
    require_one_format,
)

if TYPE_CHECKING:
    from dumbo.plugins.polars.plugin import PolarsOptions

# Suffixes of files that somebody may well point at by mistake; a hub dataset may have any other dot in its name.
_FILE_SUFFIXES = frozenset(
    {*FORMATS, ".gz", ".zst", ".bz2", ".xz", ".zip", ".tar", ".txt", ".tsv", ".xlsx", ".yaml", ".py"}
)


def is_hub_dataset(path: str) -> bool:
    """Whether `path` is a dataset on the hub: a name as the hub has them, and not that of a file that is missing."""
    return is_hub_name(path) and PurePosixPath(path).suffix.lower() not in _FILE_SUFFIXES


def find_local_files(options: PolarsOptions) -> list[DataFile]:
    """The files of `options.path`, sorted by name. Raises `SourceMistake` naming the option that is wrong."""
    path = Path(options.path).expanduser()
    for key in ("name", "revision"):
        if getattr(options, key) is not None:
            raise SourceMistake(key, f"only datasets on the hub have a {key}; '{options.path}' is a local path")
    try:
        files = _files_at(path, options)
    except OSError as error:
        raise SourceMistake("path", f"cannot look at '{options.path}': {error.strerror}") from error
    require_json(files, options.field)
    return files


def _files_at(path: Path, options: PolarsOptions) -> list[DataFile]:
    if path.is_dir():
        return _files_in_folder(path, options)
    if options.split is not None:
        raise SourceMistake("split", f"only folders and datasets on the hub have splits; '{options.path}' has none")
    if path.is_file():
        return [_data_file(path, options.format)]
    if path.exists():
        raise SourceMistake("path", f"'{options.path}' is neither a file nor a folder")
    if glob.has_magic(options.path):
        return _files_of_glob(path, options)
    raise _missing(path, options.path)


def _files_of_glob(pattern: Path, options: PolarsOptions) -> list[DataFile]:
    # Not `Path.glob`: it takes no absolute pattern, and raises for `**.jsonl`.
    matches = [Path(name) for name in sorted(glob.glob(str(pattern), recursive=True))]  # noqa: PTH207
    files = [match for match in matches if match.is_file()]
    if not files:
        found = "only folders match" if matches else "no file matches"
        raise SourceMistake("path", f"{found} '{options.path}'", _start(pattern))
    return [_data_file(file, options.format) for file in files]


def _files_in_folder(folder: Path, options: PolarsOptions) -> list[DataFile]:
    names = (file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    paths = data_files_among(names, options.format)
    owner = f"folder '{options.path}'"
    if not paths:
        wanted = "data files" if options.format == "auto" else f"files of format {options.format}"
        raise SourceMistake("path", f"{owner} has no {wanted}", f"known suffixes: {', '.join(FORMATS)}")
    groups = group_by_split(paths)
    if groups.get(""):
        raise SourceMistake(
            "path",
            f"{owner} has files that name no split beside files that do: {', '.join(groups[''][:3])}",
            f"say which files to read with a glob, e.g. '{options.path.rstrip('/')}/{groups[''][0]}'",
        )
    chosen = pick_split(groups, options.split, owner)
    require_one_format(chosen, owner)
    return [_data_file(folder / name, options.format) for name in chosen]


def _data_file(path: Path, format: str) -> DataFile:
    return DataFile(path, _shown(path), require_format(_shown(path), format))


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
