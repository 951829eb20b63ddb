"""The options of a `huggingface_polars` dataset, and the plugin that reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from dumbo.config.schema import RunConfig
from dumbo.config.section import Section
from dumbo.data.records import Row
from dumbo.data.slices import refuse_list
from dumbo.errors import ConfigError, Problem
from dumbo.plugin_loader import ReaderPlugin
from dumbo.plugins.polars.data_files import SourceMistake
from dumbo.plugins.polars.paths import check_paths

_Name = Annotated[str, Field(min_length=1)]


class PolarsOptions(Section):
    """A dataset of type `huggingface_polars`."""

    path: _Name | Annotated[tuple[_Name, ...], Field(min_length=1)]
    """File, folder, glob (`data/*.jsonl`), hub dataset (`owner/name`, or files of it: `hf://datasets/owner/name/file`),
    address (`s3://`, `gs://`, `https://`, ...); or a list of them. Relative paths start where you are."""
    format: Literal["auto", "json", "jsonl", "csv", "tsv", "parquet", "arrow", "text"] = "auto"
    """How the files are written; `auto`: as their suffix says. Of a folder or hub dataset only such files are read."""
    field: _Name | None = None
    """For JSON files that are one object: the key of the list that holds the rows."""
    rows: Literal["file", "line", "paragraph"] | None = None
    """What a row is in text files: a whole file (the default), a line, or a paragraph, which ends at an empty line."""
    split: _Name | None = None
    """Split of a folder or hub dataset, by default `train`; a part of its rows (`train[:10%]`, `train[100:200]`), of
    all rows of other paths (`[:1000]`); or several, joined by `+`."""
    name: _Name | None = None
    """Subset of a hub dataset; by default the one that it declares as default, or its only one."""
    revision: _Name | None = None
    """Branch, tag or commit of a hub dataset; by default its main branch."""

    _check_split = field_validator("split", mode="before")(refuse_list)


class PolarsPlugin(ReaderPlugin):
    """Reads files of rows, on this machine, the hub or any filesystem that fsspec knows."""

    name = "polars"
    packages = ("polars",)
    readers: ClassVar = {"huggingface_polars": PolarsOptions}

    def check(self, config: RunConfig) -> None:
        """Report local paths that are not there, addresses and parts of splits that cannot be read, and options that
        would do nothing. No network, no file opened."""
        problems: list[Problem] = []
        for index, entry in enumerate(config.datasets):
            options: Any = entry
            if options.type not in self.readers or config.trainer.data.prepared is not None:
                continue
            try:
                check_paths(options)
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

    def fingerprint(self, options: PolarsOptions) -> str:
        """A text that changes with the rows: local files are read for it; of others their versions count if known.

        Raises `RunError` and `DataError` as `read` does.
        """
        from dumbo.plugins.polars.reading import fingerprint_rows

        return fingerprint_rows(options)
