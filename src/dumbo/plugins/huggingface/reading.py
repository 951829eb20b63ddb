"""Loads a dataset with Datasets and makes rows of it: nothing stale, nothing printed, and errors in one line."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import pyarrow
from datasets.utils.logging import CRITICAL, get_verbosity, set_verbosity
from huggingface_hub import HfApi
from huggingface_hub.utils import logging as hub_logging
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from dumbo.data.records import Origin, Row
from dumbo.data.slices import SplitSlice, empty_slice
from dumbo.errors import ConfigError, DumboError
from dumbo.plugins.huggingface.limits import is_checked, refuse_outside, refuse_outside_saved
from dumbo.plugins.huggingface.load_errors import explained
from dumbo.plugins.huggingface.sources import (
    DEFAULT_SPLIT,
    Kind,
    files_of,
    is_local,
    kind_of,
    parts_of,
    source_mistakes,
)
from dumbo.redact import redact_text

if TYPE_CHECKING:
    from dumbo.plugins.huggingface.plugin import HuggingfaceOptions


def read_rows(options: HuggingfaceOptions) -> Iterator[Row]:
    """Yield the rows of the split. Raises `ConfigError`, `RunError` and `DataError`."""
    for mistake in source_mistakes(options):
        raise ConfigError.at(f".{mistake.key}", mistake.message, *mistake.hints)
    source = _source_name(options, DEFAULT_SPLIT)
    with quiet(), _cache_folder(options) as cache:
        try:
            commit = find_commit(options)
            cache = cache or _cache_of(options, commit)
            for part in parts_of(options):
                dataset = _without_decoding(_load(options, part.name, cache, commit))
                source = _source_name(options, part.name)
                for number, values in _numbered(dataset, part, source):
                    yield Row(values, Origin(source, number))
        except DumboError:
            raise
        except Exception as error:
            raise explained(error, options, source) from error


def find_commit(options: HuggingfaceOptions) -> str | None:
    """The commit of a hub dataset that is read, found in the hub's cache where there is no network."""
    if kind_of(options.path) is not Kind.HUB:
        return None
    return HfApi().resolve_revision(options.path, repo_type="dataset", revision=options.revision)


def _cache_of(options: HuggingfaceOptions, commit: str | None) -> str | None:
    """A cache for what is read alone: without network Datasets takes what it finds, of whatever revision and files."""
    if commit is None:
        return None
    chosen = json.dumps([options.name, files_of(options), options.data_dir])
    key = hashlib.sha256(chosen.encode()).hexdigest()[:8]
    name = f"{options.path.replace('/', '--')}-{commit[:16]}-{key}"
    return str(Path(datasets.config.HF_DATASETS_CACHE) / "dumbo" / name)


def _load(options: HuggingfaceOptions, split: str, cache: str | None, commit: str | None) -> Any:
    """The whole of a split."""
    if kind_of(options.path) is Kind.SAVED:
        return _load_saved(options, split)
    files = files_of(options)
    path = str(Path(options.path).expanduser()) if kind_of(options.path) is Kind.FOLDER else options.path
    where: dict[str, Any] = {
        "name": options.name,
        "data_files": [str(Path(file).expanduser()) if file.startswith("~") else file for file in files] or None,
        "data_dir": options.data_dir,
        "revision": commit,
        "cache_dir": cache,
    }
    if is_checked(options):
        found = datasets.load_dataset_builder(path, **where).config.data_files or {}
        refuse_outside((file for names in found.values() for file in names), options)
    return datasets.load_dataset(path, split=split, streaming=options.streaming, **where)


def _load_saved(options: HuggingfaceOptions, split: str) -> Any:
    """A split of a folder of `save_to_disk`, which may have no splits."""
    refuse_outside_saved(options)
    loaded = datasets.load_from_disk(str(Path(options.path).expanduser()))
    splits = loaded if isinstance(loaded, datasets.DatasetDict) else {str(loaded.split or DEFAULT_SPLIT): loaded}
    if split not in splits:
        raise ValueError(f'Unknown split "{split}". Should be one of {[*splits]}.')
    return splits[split]


def _numbered(dataset: Any, part: SplitSlice, source: str) -> Iterator[tuple[int, Any]]:
    """The rows of `part` of a split, with their numbers in it from 1. Raises `ConfigError` where there are none."""
    if part.is_whole:
        yield from enumerate(dataset, start=1)
        return
    start, stop = part.bounds(len(dataset))
    if start == stop:
        mistake = empty_slice(part, len(dataset), f"'{source}'")
        raise ConfigError.at(".split", mistake.message, *mistake.hints)
    yield from enumerate(dataset.select(range(start, stop)), start=start + 1)


def _without_decoding(dataset: Any) -> Any:
    """Pictures and sounds stay mappings with `path` and `bytes`: decoding takes other packages, and text is trained."""
    for name, feature in (dataset.features or {}).items():
        storage = getattr(feature, "pa_type", None)
        if isinstance(storage, pyarrow.StructType) and storage.get_field_index("bytes") >= 0:
            dataset = dataset.cast_column(name, type(feature)(decode=False))
    return dataset


@contextmanager
def _cache_folder(options: HuggingfaceOptions) -> Iterator[str | None]:
    """For local files a cache of this reading alone: Datasets knows a changed file by its time of change only."""
    if kind_of(options.path) is Kind.SAVED or options.streaming or not is_local(options):
        yield None
        return
    parent = Path(datasets.config.HF_DATASETS_CACHE)
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="dumbo-", dir=parent, ignore_cleanup_errors=True) as folder:
        yield folder


@contextmanager
def quiet() -> Iterator[None]:
    """Without notes of Datasets and the hub's client, and without bars where nobody watches; as before afterwards."""
    had_bars, hub_had_bars = not datasets.are_progress_bars_disabled(), not are_progress_bars_disabled()
    verbosity, hub_verbosity = get_verbosity(), hub_logging.get_verbosity()
    set_verbosity(CRITICAL)  # what it logs as an error, it raises too
    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)
        if had_bars:
            datasets.enable_progress_bars()
        if hub_had_bars:
            enable_progress_bars()


def _source_name(options: HuggingfaceOptions, split: str) -> str:
    """What messages call it: the file, or the dataset, and the split unless it is the default."""
    files = files_of(options)
    name = redact_text(files[0]) if len(files) == 1 and kind_of(options.path) is Kind.FILES else options.path
    return name if split == DEFAULT_SPLIT else f"{name} ({split})"
