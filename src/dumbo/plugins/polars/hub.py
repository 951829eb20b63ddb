"""Download the files of a dataset on the hub, and explain in a line why that does not work."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import (
    DisabledRepoError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from dumbo.errors import Problem, RunError
from dumbo.plugins.polars.data_files import (
    FORMATS,
    DataFile,
    SourceMistake,
    require_format,
    require_json,
    require_one_format,
)
from dumbo.plugins.polars.hub_layout import choose_converted_files, choose_files
from dumbo.plugins.polars.local_files import nearby_names

if TYPE_CHECKING:
    from dumbo.plugins.polars.plugin import PolarsOptions

_CARD = "README.md"
# The branch with the hub's own Parquet copy, which datasets have whose rows were made by a script.
_CONVERTED = "refs/convert/parquet"
_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


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
        raise _explain(error, options) from error
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


def _explain(error: Exception, options: PolarsOptions) -> RunError:
    message, hints = _reason(error, options)
    return RunError(str(Problem(message, hints=hints)))


def _reason(error: Exception, options: PolarsOptions) -> tuple[str, tuple[str, ...]]:
    dataset = f"dataset '{options.path}'"
    while isinstance(error, RevisionResolutionError | LocalEntryNotFoundError) and isinstance(
        error.__cause__, Exception
    ):
        error = error.__cause__  # what the network said, before the cache was tried instead
    if isinstance(error, GatedRepoError):
        return f"{dataset} is gated", ("accept its conditions on its page on the hub", f"then {_LOG_IN}")
    if isinstance(error, DisabledRepoError):
        return f"{dataset} was disabled on the hub", ()
    if isinstance(error, RevisionNotFoundError):
        return f"{dataset} has no revision '{options.revision or 'main'}'", (
            "`revision` is a branch, a tag or a commit",
        )
    if isinstance(error, RepositoryNotFoundError | HFValidationError):
        near = nearby_names(Path(options.path))
        local = [f"or did you mean the local {' or '.join(repr(name) for name in near)}?"] if near else []
        missing = f"there is no file or folder '{options.path}' in {Path.cwd()} either"
        return f"no {dataset} on the hub, or it is private", (missing, *local, f"if it is private, {_LOG_IN}")
    if isinstance(error, OfflineModeIsEnabled):
        return f"{dataset} is not wholly in the local cache, and HF_HUB_OFFLINE forbids to download it", (
            "unset HF_HUB_OFFLINE, or give the path of a local copy",
        )
    if isinstance(error, HfHubHTTPError):
        return _http_reason(error.response.status_code, dataset)
    if isinstance(error, OSError) and error.strerror:
        return f"cannot download {dataset}: {error.strerror}", (str(error.filename or "check the space on the disk"),)
    detail = str(error).partition("\n")[0]
    return f"cannot reach the hub for {dataset}: {detail}", (
        "check the network, HF_ENDPOINT and the proxy settings, or give the path of a local copy",
    )


def _http_reason(status: int, dataset: str) -> tuple[str, tuple[str, ...]]:
    if status in (401, 403):
        return f"the hub refuses access to {dataset} (HTTP {status})", (_LOG_IN,)
    if status == 429:
        return f"the hub refuses more requests for now ({dataset}, HTTP 429)", ("wait a few minutes", _LOG_IN)
    return f"the hub cannot give {dataset} (HTTP {status})", ("try again later, or give the path of a local copy",)
