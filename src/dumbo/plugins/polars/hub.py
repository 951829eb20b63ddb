"""Download the files of a dataset on the hub."""

from __future__ import annotations

import difflib
import glob
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import RevisionNotFoundError, RevisionResolutionError

from dumbo.bridge.hub_errors import Repository, explain
from dumbo.errors import RunError
from dumbo.local_paths import near_paths
from dumbo.plugins.polars.data_files import (
    LocalFile,
    SourceMistake,
    choose_in_folder,
    no_data_files,
    require_format,
    require_one_format,
)
from dumbo.plugins.polars.hub_layout import choose_converted_files, choose_files, glob_pattern
from dumbo.plugins.polars.hub_names import HubPath
from dumbo.plugins.polars.local_files import refuse_split

if TYPE_CHECKING:
    from dumbo.plugins.polars.plugin import PolarsOptions

_CARD = "README.md"
# The branch with the hub's own Parquet copy, which datasets have whose rows were made by a script.
_CONVERTED = "refs/convert/parquet"


def download_files(place: HubPath, split: str, options: PolarsOptions) -> list[LocalFile]:
    """The files of a hub dataset's split, downloaded into the hub's cache, or found there where there is no network.

    Raises `SourceMistake` for a subset, split or file that does not exist, `RunError` for all that the hub refuses.
    """
    try:
        commit, paths = _choose_within(place, split, options) if place.within else _choose(place, split, options)
        folder = _download(place.repository, commit, paths)
    except (SourceMistake, RunError):
        raise
    except Exception as error:  # the hub's client lets through what its libraries for HTTP and files raise
        repository = Repository("dataset", place.repository, place.revision)
        raise explain(error, repository, near=near_paths(Path(place.written))) from error
    return [_hub_file(folder, path, place.repository, commit, options.format) for path in paths]


def _hub_file(folder: Path, path: str, repository: str, commit: str, format: str) -> LocalFile:
    version = f"hub:{repository}@{commit}/{path}"
    return LocalFile(f"{repository}/{path}", require_format(path, format), folder / path, version)


def _choose(place: HubPath, split: str, options: PolarsOptions) -> tuple[str, list[str]]:
    """The commit to read, and the paths of its files to read."""
    owner = f"dataset '{place.repository}'"
    commit, files, folder = _list_files(place.repository, place.revision)
    card = (folder / _CARD).read_text(encoding="utf-8", errors="replace") if _CARD in files else ""
    files = [file for file in files if file != _CARD]  # which is a text, and no row
    paths = choose_files(files, card, options.name, split, options.format, owner)
    if not paths and place.revision is None and options.format in ("auto", "parquet"):
        commit, paths = _choose_converted(place.repository, split, options.name, owner)
    if not paths:
        raise no_data_files(files, options.format, owner)
    require_one_format(paths, owner)
    return commit, paths


def _choose_converted(repository: str, split: str, name: str | None, owner: str) -> tuple[str, list[str]]:
    try:
        commit, files, _ = _list_files(repository, _CONVERTED)
    except (RevisionNotFoundError, RevisionResolutionError):
        return "", []
    return commit, choose_converted_files(files, name, split, owner)


def _choose_within(place: HubPath, split: str, options: PolarsOptions) -> tuple[str, list[str]]:
    """The same for a file, a pattern or a folder in the dataset."""
    commit, files, _ = _list_files(place.repository, place.revision)
    inside = [file.removeprefix(f"{place.within}/") for file in files if file.startswith(f"{place.within}/")]
    if inside and place.within not in files:
        chosen = choose_in_folder(inside, options.format, split, f"folder '{place.written}'", place.written)
        return commit, [f"{place.within}/{path}" for path in chosen]
    refuse_split(split, place.written)
    if place.within in files:
        return commit, [place.within]
    matcher = glob_pattern(place.within)
    matching = sorted(file for file in files if matcher.fullmatch(file))
    if not matching:
        near = difflib.get_close_matches(place.within, files, n=1)
        hints = [f"did you mean '{near[0]}'?"] if near else []
        raise SourceMistake("path", f"dataset '{place.repository}' has no file or folder '{place.within}'", *hints)
    return commit, matching


def _list_files(repository: str, revision: str | None) -> tuple[str, list[str], Path]:
    """The commit that `revision` stands for now, all paths in it, and the local folder with the dataset's card."""
    commit = HfApi().resolve_revision(repository, repo_type="dataset", revision=revision)
    # Downloading anything leaves the list of all files in the cache, where it is found without network too. Every
    # repository has the second file; a download of nothing makes the hub's client warn.
    folder = _download(repository, commit, [_CARD, ".gitattributes"])
    files = [file.path for file in get_cached_repo_tree(repository, repo_type="dataset", revision=commit)]
    return commit, files, folder


def _download(repository: str, commit: str, paths: list[str]) -> Path:
    """Download `paths` and return the folder that they are in."""
    patterns = [glob.escape(path) for path in paths]
    return Path(snapshot_download(repository, repo_type="dataset", revision=commit, allow_patterns=patterns))
