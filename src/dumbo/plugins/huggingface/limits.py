"""Keeps a dataset within itself: its card may name files, and only those that lie in it are read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from dumbo.errors import ConfigError
from dumbo.plugins.huggingface.sources import Kind, files_of, kind_of

if TYPE_CHECKING:
    from dumbo.plugins.huggingface.plugin import HuggingfaceOptions


def is_checked(options: HuggingfaceOptions) -> bool:
    """Whether the dataset itself says which files are read; files that the user names may lie anywhere."""
    return kind_of(options.path) in (Kind.FOLDER, Kind.HUB) and not files_of(options)


def refuse_outside(files: Iterable[str], options: HuggingfaceOptions) -> None:
    """Raise `ConfigError` for the first of `files`, as Datasets has found them, that lies outside of the dataset."""
    for file in files:
        if not _is_inside(file, options):
            message = f"the dataset '{options.path}' names a file that lies outside of it: {file}"
            hint = "its card (README.md) does so under 'configs'; if you want that file, name it in data_files"
            raise ConfigError.at(".path", message, hint)


def refuse_outside_saved(options: HuggingfaceOptions) -> None:
    """The same for a folder of `save_to_disk`, whose tables stand in `state.json`."""
    for state in sorted(Path(options.path).expanduser().glob("**/state.json")):
        try:
            tables = json.loads(state.read_text(encoding="utf-8"))["_data_files"]
            names = [str(table["filename"]) for table in tables]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # Datasets says what is wrong with it.
        outside = [name for name in names if Path(name).name != name]
        if outside:
            message = f"the dataset '{options.path}' names a file that lies outside of it: {outside[0]}"
            raise ConfigError.at(".path", message, f"{state} does so under '_data_files'")


def _is_inside(file: str, options: HuggingfaceOptions) -> bool:
    if kind_of(options.path) is Kind.HUB:
        return file.startswith(f"hf://datasets/{options.path}@") and ".." not in PurePosixPath(file).parts
    if "://" in file:
        return False
    folder = Path(options.path).expanduser() / (options.data_dir or "")
    # As it is written: a link in a folder of the user's is the user's.
    return Path(os.path.abspath(file)).is_relative_to(os.path.abspath(folder))  # noqa: PTH100 (`resolve` follows links)
