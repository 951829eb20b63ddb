"""Download the files of a dataset on the hub."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import RevisionNotFoundError, RevisionResolutionError

from dumbo.bridge.hub_errors import Repository, explain
from dumbo.errors import RunError
from dumbo.local_paths import near_paths
from dumbo.plugins.polars.data_files import (
    FORMATS,
    DataFile,
    SourceMistake,
    require_format,
    require_json,
    require_one_format,
)
from dumbo.plugins.polars.hub_layout import choose_converted_files, choose_files

if TYPE_CHECKING:
    from dumbo.plugins.polars.plugin import PolarsOptions

_CARD = "README.md"
# The branch with the hub's own Parquet copy, which datasets have whose rows were made by a script.
_CONVERTED = "refs/convert/parquet"


def download_files(options: PolarsOptions) -> list[DataFile]:
    """The files of a hub dataset's split, downloaded into the hub's cache, or found there where there is no network.

    Raises `SourceMistake` for a subset or split that does not exist, `RunError` for all that the hub refuses.
    """
    try:
        commit, paths = _choose(options)
        folder = _download(options.path, commit, paths)
    except (SourceMistake, RunError):
        raise
    except Exception as error:  # the hub's client lets through what its libraries for HTTP and files raise
        repository = Repository("dataset", options.path, options.revision)
        raise explain(error, repository, near=near_paths(Path(options.path))) from error
    files = [DataFile(folder / path, f"{options.path}/{path}", require_format(path, options.format)) for path in paths]
    require_json(files, options.field)
    return files


def _choose(options: PolarsOptions) -> tuple[str, list[str]]:
    """The commit to read, and the paths of its files to read."""
    owner = f"dataset '{options.path}'"
    commit, files, folder = _list_files(options.path, options.revision)
    card = (folder / _CARD).read_text(encoding="utf-8", errors="replace") if _CARD in files else ""
    paths = choose_files(files, card, options.name, options.split, options.format, owner)
    if not paths and options.revision is None and options.format in ("auto", "parquet"):
        commit, paths = _choose_converted(options, owner)
    if not paths:
        wanted = "data files that can be read" if options.format == "auto" else f"files of format {options.format}"
        raise SourceMistake("path", f"{owner} has no {wanted}", f"known suffixes: {', '.join(FORMATS)}")
    require_one_format(paths, owner)
    return commit, paths


def _choose_converted(options: PolarsOptions, owner: str) -> tuple[str, list[str]]:
    try:
        commit, files, _ = _list_files(options.path, _CONVERTED)
    except (RevisionNotFoundError, RevisionResolutionError):
        return "", []
    return commit, choose_converted_files(files, options.name, options.split, owner)


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
