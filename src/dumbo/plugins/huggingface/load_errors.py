"""Explains what Datasets raises: which option is wrong, what there is instead, and what to do."""

from __future__ import annotations

import ast
import re
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from datasets.exceptions import DataFilesNotFoundError, DatasetBuildError, DatasetNotFoundError
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from dumbo.bridge.hub_errors import Repository, causes, explain
from dumbo.errors import ConfigError, DataError, DumboError, Place, Problem, RunError
from dumbo.local_paths import near_paths
from dumbo.plugins.huggingface.sources import Kind, files_of, kind_of
from dumbo.redact import redact_text

if TYPE_CHECKING:
    from dumbo.plugins.huggingface.plugin import HuggingfaceOptions

_UNKNOWN = (
    ("split", re.compile(r"Unknown split \"(?P<value>.*?)\"\. Should be one of (?P<known>\[.*?\])", re.DOTALL)),
    ("split", re.compile(r"Bad split: (?P<value>.*?)\. Available splits: (?P<known>\[.*?\])", re.DOTALL)),
    ("name", re.compile(r"BuilderConfig '(?P<value>.*?)' not found\. Available: (?P<known>\[.*?\])", re.DOTALL)),
    ("name", re.compile(r"Config name is missing(?P<value>).*?available configs: (?P<known>\[.*?\])", re.DOTALL)),
)
"""What Datasets says of a name that it does not know."""


def explained(error: Exception, options: HuggingfaceOptions, source: str) -> DumboError:
    """The error to raise for `error`, which came up while the dataset was loaded or read."""
    return (
        _unknown_name(error, options)
        or _wrong_split(error, options)
        or _script(error, options)
        or _from_hub(error, options)
        or _no_files(error, options)
        or _broken_rows(error, source)
        or RunError(f"{source}: cannot be read: {type(error).__name__}: {_first_line(error)}")
    )


def _unknown_name(error: Exception, options: HuggingfaceOptions) -> DumboError | None:
    for key, pattern in _UNKNOWN:
        found = pattern.search(str(error))
        if found is None:
            continue
        known, value = [str(name) for name in ast.literal_eval(found["known"])], found["value"]
        what = "split" if key == "split" else "subset"
        message = f"'{options.path}' has no {what} '{value}'" if value else f"'{options.path}' has several subsets"
        near = get_close_matches(value, known, n=1)
        hints = [f"did you mean '{near[0]}'?"] if near else []
        return ConfigError.at(f".{key}", message, *hints, f"it has {', '.join(known)}")
    return None


def _wrong_split(error: Exception, options: HuggingfaceOptions) -> DumboError | None:
    """A name that Datasets does not take for a split, or a split without rows."""
    words = _first_line(error)
    said = ("Split name", "Unrecognized instruction", "no data")
    if isinstance(error, ValueError | AssertionError) and any(word in words for word in said):
        hint = "write a split, or a part of it such as train[:10%] or train[100:200]"
        return ConfigError.at(".split", f"'{options.split}' cannot be read: {words}", hint)
    return None


def _script(error: Exception, options: HuggingfaceOptions) -> DumboError | None:
    if "Dataset scripts are no longer supported" not in str(error):
        return None
    message = f"'{options.path}' is made by a Python script, and such datasets are not run"
    hint = "type: huggingface_polars reads the Parquet copy that the hub makes of many of them"
    return ConfigError.at(".path", message, hint)


def _from_hub(error: Exception, options: HuggingfaceOptions) -> DumboError | None:
    if kind_of(options.path) is not Kind.HUB or isinstance(error, DatasetBuildError):
        return None
    cause = error
    if isinstance(error, ConnectionError | DatasetNotFoundError):
        cause = _asked_again(options) or error  # Datasets drops the error that the hub's client raised
    chain = tuple(causes(cause))
    from_network = any(type(part).__module__.partition(".")[0].startswith("http") for part in chain)
    known = (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled)
    if from_network or any(isinstance(part, known) for part in chain):
        repository = Repository("dataset", options.path, options.revision)
        return explain(cause, repository, near=near_paths(Path(options.path)))
    return None


def _asked_again(options: HuggingfaceOptions) -> Exception | None:
    """What the hub's client says of the dataset."""
    try:
        commit = HfApi().resolve_revision(options.path, repo_type="dataset", revision=options.revision)
        hf_hub_download(options.path, ".gitattributes", repo_type="dataset", revision=commit)
    except Exception as error:
        return error
    return None


def _no_files(error: Exception, options: HuggingfaceOptions) -> DumboError | None:
    # A pattern without a match ends in the first of these.
    if not isinstance(error, StopIteration | FileNotFoundError | DataFilesNotFoundError):
        return None
    files = [f"'{redact_text(file)}'" for file in files_of(options)]
    if files:
        reached = " or can be reached at" if any("://" in file for file in files) else ""
        return ConfigError.at(".data_files", f"no file matches{reached} {', '.join(files)}")
    where = f" in '{options.data_dir}'" if options.data_dir else ""
    key = ".data_dir" if options.data_dir else ".path"
    return ConfigError.at(key, f"'{options.path}' has no data files that can be read{where}")


def _broken_rows(error: Exception, source: str) -> DumboError | None:
    """Files that cannot be made into one table; the cause says why."""
    if not isinstance(error, DatasetBuildError):
        return None
    chain = [cause for cause in causes(error) if not isinstance(cause, DatasetBuildError)]
    reason = _first_line(chain[0] if chain else error)
    hint = "every file must have the same columns, and a column values of one type; huggingface_polars allows others"
    return DataError([Problem(f"the rows do not make a table: {reason}", place=Place(source), hints=(hint,))])


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
