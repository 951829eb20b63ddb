"""From `path` and `split` to files: each path is looked for where it is, on this machine, the hub or elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dumbo.data.slices import SliceMistake, SplitSlice, parse_split
from dumbo.plugins.polars.addresses import check_address, is_address, shown_address
from dumbo.plugins.polars.data_files import DataFile, SourceMistake, require_formats
from dumbo.plugins.polars.hub_names import PROTOCOL, parse_hub_path
from dumbo.plugins.polars.local_files import find_local_files, is_hub_dataset, refuse_hub_keys

if TYPE_CHECKING:
    from dumbo.plugins.polars.plugin import PolarsOptions


def paths_of(options: PolarsOptions) -> tuple[str, ...]:
    """The paths that were written, as a list."""
    return (options.path,) if isinstance(options.path, str) else tuple(options.path)


def parts_of(options: PolarsOptions) -> tuple[SplitSlice, ...]:
    """The parts that are read, in their order. Raises `SourceMistake`."""
    if options.split is None:
        return (SplitSlice(""),)
    try:
        return parse_split(options.split)
    except SliceMistake as mistake:
        raise SourceMistake("split", mistake.message, *mistake.hints) from mistake


def find_files(options: PolarsOptions, split: str) -> list[DataFile]:
    """The files of `split` (by default `train`) at all paths. Raises `SourceMistake` and `RunError`."""
    files = [file for path in paths_of(options) for file in _files_of(path, split, options)]
    require_formats(files, options.field, options.rows)
    return files


def check_paths(options: PolarsOptions) -> None:
    """Raise `SourceMistake` for what can be known to be wrong without network and without opening a file."""
    parts = parts_of(options)
    for path in paths_of(options):
        if path.startswith(PROTOCOL):
            parse_hub_path(path, options)
        elif is_address(path):
            check_address(path)
            refuse_hub_keys(shown_address(path), options, "no dataset on the hub")
        elif not is_hub_dataset(path):
            for part in parts:
                require_formats(find_local_files(path, part.name, options), options.field, options.rows)


def _files_of(path: str, split: str, options: PolarsOptions) -> Sequence[DataFile]:
    if path.startswith(PROTOCOL) or is_hub_dataset(path):
        from dumbo.plugins.polars.hub import download_files

        return download_files(parse_hub_path(path, options), split, options)
    if is_address(path):
        from dumbo.plugins.polars.remote_files import find_remote_files

        return find_remote_files(path, split, options)
    return find_local_files(path, split, options)
