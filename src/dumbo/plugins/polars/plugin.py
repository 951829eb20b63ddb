"""The options of a `huggingface_polars` dataset, and the plugin that reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from dumbo.config.schema import RunConfig
from dumbo.config.section import Section
from dumbo.data.records import Row
from dumbo.errors import ConfigError, Problem
from dumbo.plugin_loader import ReaderPlugin
from dumbo.plugins.polars.data_files import SourceMistake
from dumbo.plugins.polars.local_files import find_local_files, is_hub_dataset

_Name = Annotated[str, Field(min_length=1)]


class PolarsOptions(Section):
    """A dataset of type `huggingface_polars`."""

    path: _Name
    """File, folder, glob (`data/*.jsonl`) or hub dataset (`owner/name`). Relative paths start where you are."""
    format: Literal["auto", "json", "jsonl", "csv", "parquet", "arrow"] = "auto"
    """How the files are written; `auto`: as their suffix says. Of a folder or hub dataset only such files are read."""
    field: _Name | None = None
    """For JSON files that are one object: the key of the list that holds the rows."""
    split: _Name | None = None
    """Split to read of a folder or a hub dataset; by default `train`."""
    name: _Name | None = None
    """Subset of a hub dataset; by default the one that it declares as default, or its only one."""
    revision: _Name | None = None
    """Branch, tag or commit of a hub dataset; by default its main branch."""


class PolarsPlugin(ReaderPlugin):
    """Reads files of rows, local or from the hub."""

    name = "polars"
    packages = ("polars",)
    readers: ClassVar = {"huggingface_polars": PolarsOptions}

    def check(self, config: RunConfig) -> None:
        """Report local paths that are not there and options that would do nothing. No network, no file opened."""
        problems: list[Problem] = []
        for index, entry in enumerate(config.datasets):
            options: Any = entry
            if options.type not in self.readers or is_hub_dataset(options.path):
                continue
            try:
                find_local_files(options)
            except SourceMistake as mistake:
                problems.append(Problem(mistake.message, ("datasets", index, mistake.key), hints=mistake.hints))
        if problems:
            raise ConfigError(problems)

    def read(self, options: PolarsOptions) -> Iterator[Row]:
        """Yield the rows of `options.path`, file after file, each in its order, without holding a file in memory.

        Raises `RunError` when the files cannot be had, `DataError` for the first row or file that cannot be read.
        """
        from dumbo.plugins.polars.reading import read_rows

        return read_rows(options)
