"""What an entry points at, told from its options and from what is on this machine, and what is wrong with it."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from dumbo.data.slices import SliceMistake, SplitSlice, parse_split
from dumbo.local_paths import is_hub_name, near_paths

if TYPE_CHECKING:
    from dumbo.plugins.huggingface.plugin import HuggingfaceOptions

BUILDERS = ("json", "csv", "parquet", "arrow", "text", "xml")
"""How files may be written. Datasets knows more, among them pickles, which can run code."""

DEFAULT_SPLIT = "train"


class Kind(Enum):
    """What `path` is."""

    SAVED = "a folder written by save_to_disk"
    FOLDER = "a local folder"
    FILES = "a format of files"
    HUB = "a dataset on the hub"
    NOTHING = "nothing that there is"


@dataclass(frozen=True)
class Mistake:
    """Something wrong with an option."""

    key: str
    message: str
    hints: tuple[str, ...] = ()


def kind_of(path: str) -> Kind:
    """What `path` is; what exists on this machine wins."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        saved = any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))
        return Kind.SAVED if saved else Kind.FOLDER
    if path in BUILDERS:
        return Kind.FILES
    return Kind.HUB if is_hub_name(path) else Kind.NOTHING


def files_of(options: HuggingfaceOptions) -> tuple[str, ...]:
    """The data files that were written, as a list."""
    files = options.data_files
    return () if files is None else (files,) if isinstance(files, str) else tuple(files)


def is_local(options: HuggingfaceOptions) -> bool:
    """Whether the rows are in files on this machine, which may change between two runs."""
    if kind_of(options.path) is Kind.HUB:
        return False
    return not any("://" in file for file in files_of(options))


def source_mistakes(options: HuggingfaceOptions) -> Iterator[Mistake]:
    """What can be known to be wrong without opening a file."""
    kind = kind_of(options.path)
    if kind is Kind.NOTHING:
        yield _not_there(options.path)
        return
    useless = {
        Kind.SAVED: ("name", "data_files", "data_dir", "revision", "streaming"),
        Kind.FOLDER: ("revision",),
        Kind.FILES: ("name", "revision"),
        Kind.HUB: (),
    }
    for key in useless[kind]:
        if getattr(options, key):
            yield Mistake(key, f"has no effect: '{options.path}' is {kind.value}", (f"remove '{key}'",))
    yield from _split_mistakes(options)
    if kind is Kind.FILES:
        if options.data_files is None and options.data_dir is None:
            hint = "data_files: a file, a pattern or a list of them"
            yield Mistake("path", f"'{options.path}' says how files are written, but not which", (hint,))
        yield from _missing_files(options)


def parts_of(options: HuggingfaceOptions) -> tuple[SplitSlice, ...]:
    """The parts that are read, in their order; of the split `train` where none is named. Raises `SliceMistake`."""
    return tuple(replace(part, name=part.name or DEFAULT_SPLIT) for part in parse_split(options.split))


def _split_mistakes(options: HuggingfaceOptions) -> Iterator[Mistake]:
    try:
        parts = parts_of(options)
    except SliceMistake as mistake:
        yield Mistake("split", mistake.message, mistake.hints)
        return
    if options.streaming and not all(part.is_whole for part in parts):
        yield Mistake("split", "a part of a split cannot be streamed", ("streaming: false, or the whole split",))


def _missing_files(options: HuggingfaceOptions) -> Iterator[Mistake]:
    start = Path(options.data_dir or ".").expanduser()
    if options.data_dir is not None and "://" not in options.data_dir and not start.is_dir():
        yield Mistake("data_dir", f"there is no folder '{options.data_dir}'", near_paths(start, folders=True))
        return
    for file in files_of(options):
        path = start / file
        if "://" not in file and not glob.has_magic(file) and not path.is_file():
            where = f"relative paths start at {start.resolve()}"
            yield Mistake("data_files", f"there is no file '{file}'", (*near_paths(path), where))


def _not_there(written: str) -> Mistake:
    path = Path(written).expanduser()
    if path.is_file():
        builder = {".jsonl": "json", ".txt": "text"}.get(path.suffix, path.suffix.removeprefix("."))
        known = builder if builder in BUILDERS else BUILDERS[0]
        hints: tuple[str, ...] = (
            f"write path: {known}, and data_files: {written}",
            "or read it with type: huggingface_polars",
        )
        return Mistake("path", f"'{written}' is a file, not a dataset", hints)
    formats = f"or one of {', '.join(BUILDERS)}, with data_files"
    hints = (*near_paths(path), f"datasets on the hub are written owner/name, {formats}")
    return Mistake("path", f"there is no folder '{written}'", hints)
