"""The options of a `huggingface` dataset, and the plugin that reads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator

from dumbo.config.schema import RunConfig
from dumbo.config.section import Section
from dumbo.data.records import Row
from dumbo.data.slices import refuse_list
from dumbo.errors import ConfigError, Problem
from dumbo.plugin_loader import ReaderPlugin
from dumbo.plugins.huggingface.sources import source_mistakes

_Name = Annotated[str, Field(min_length=1)]


class HuggingfaceOptions(Section):
    """A dataset of type `huggingface`."""

    path: _Name
    """Hub dataset (`owner/name`), local folder, or how `data_files` are written: `json`, `csv`, `parquet`, `arrow`,
    `text` or `xml`."""
    name: _Name | None = None
    """Subset (configuration) of the dataset, where it has several."""
    split: _Name = "train"
    """Split, or a part of it: `train[:10%]`, `train[100:200]`, `train+test`; without a name (`[:1000]`) of `train`."""
    data_files: _Name | Annotated[tuple[_Name, ...], Field(min_length=1)] | None = None
    """Files, patterns or addresses; relative to the dataset where `path` is one."""
    data_dir: _Name | None = None
    """Folder within the dataset to read."""
    revision: _Name | None = None
    """Branch, tag or commit of a hub dataset; by default its main branch."""
    streaming: bool = False
    """Read over the network row by row, and keep no copy on the disk."""

    _check_split = field_validator("split", mode="before")(refuse_list)


class HuggingfacePlugin(ReaderPlugin):
    """Reads what Datasets can load, without running code of a dataset."""

    name = "huggingface"
    packages = ("datasets",)
    readers: ClassVar = {"huggingface": HuggingfaceOptions}

    def check(self, config: RunConfig) -> None:
        """Report paths that are not there and options that would do nothing. No network, no file opened."""
        problems: list[Problem] = []
        for index, entry in enumerate(config.datasets):
            options: Any = entry
            if options.type in self.readers and config.trainer.data.prepared is None:
                mistakes = source_mistakes(options)
                problems += [Problem(m.message, ("datasets", index, m.key), hints=m.hints) for m in mistakes]
        if problems:
            raise ConfigError(problems)

    def read(self, options: HuggingfaceOptions) -> Iterator[Row]:
        """Yield the rows in their order, as plain Python values.

        Raises `ConfigError` for splits and subsets that are not there, `RunError` for what hub or disk refuse.
        """
        from dumbo.plugins.huggingface.reading import read_rows

        return read_rows(options)

    def fingerprint(self, options: HuggingfaceOptions) -> str | None:
        """A text that changes with the rows: by the commit on the hub, by the bytes of files on this machine.

        None for files at addresses. Raises as `read` does where there is nothing to read.
        """
        from dumbo.plugins.huggingface.fingerprint import fingerprint_rows

        return fingerprint_rows(options)
