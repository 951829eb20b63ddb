"""The entries under `datasets:` read into records, before any model loads."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dumbo.data.records import DataFormat, Origin, Record, Row
from dumbo.errors import ConfigError, DataError, PluginError, Problem
from dumbo.plugin_loader import DataFormatPlugin, ReaderPlugin
from dumbo.plugin_results import shown
from dumbo.redact import redact_text

if TYPE_CHECKING:
    from dumbo.config.schema import DatasetEntry, RunConfig
    from dumbo.plugin_manager import PluginManager

_MOST_BAD_ROWS = 1000
"""Bad rows that are kept for messages. Where they are errors, reading stops there: they are enough to see a pattern."""


def paths_of(entry: DatasetEntry) -> list[str]:
    """The paths that an entry names: none, one or a list."""
    path = getattr(entry, "path", None)
    return [] if path is None else [path] if isinstance(path, str) else [str(each) for each in path]


@dataclass
class Source:
    """One entry under `datasets:` and what has become of its rows."""

    entry: DatasetEntry
    index: int
    stops_early: bool
    """Whether bad rows are errors, so that there is no point in finding all of them."""
    records: list[Record] = field(default_factory=list)
    bad_rows: list[Problem] = field(default_factory=list)
    num_bad: int = 0

    @property
    def label(self) -> str:
        """How tables call it: its path, where it has one; the first of several, and how many follow."""
        first, *others = paths_of(self.entry) or [f"datasets.{self.index}"]
        return redact_text(first) + (f" and {len(others)} more" if others else "")

    @property
    def has_seen_enough(self) -> bool:
        """Whether there are so many bad rows that the others need not be looked at."""
        return self.stops_early and self.num_bad >= _MOST_BAD_ROWS

    def note_bad(self, error: DataError) -> None:
        """Count bad rows, and keep the first of them for messages."""
        self.num_bad += len(error.problems)
        self.bad_rows += error.problems[: _MOST_BAD_ROWS - len(self.bad_rows)]

    def convert(self, items: Iterable[Any], function: Any) -> Iterator[Any]:
        """`function` of every item; those for which it raises a DataError are noted as bad rows."""
        for item in items:
            try:
                yield function(item)
            except DataError as error:
                self.note_bad(error)
                if self.has_seen_enough:
                    return

    def settle(self, left: int) -> None:
        """Raise where bad rows are errors, or where none of the rows is `left`."""
        if self.bad_rows and (self.stops_early or not left):
            raise DataError(self.bad_rows)
        if not left:
            raise ConfigError([Problem("has no rows", ("datasets", self.index))])


def read_sources(config: RunConfig, plugins: PluginManager, limit: int | None = None) -> list[Source]:
    """Read every source (its first `limit` rows) into records.

    Raises:
        DataError: rows that cannot be used, unless `on_bad_row` drops them; a source without any row.
    """
    sources = []
    stops_early = config.trainer.data.on_bad_row == "error"
    for index, entry in enumerate(config.datasets):
        source = read_source(Source(entry, index, stops_early), plugins, limit)
        source.settle(len(source.records))
        sources.append(source)
    return sources


def read_source(source: Source, plugins: PluginManager, limit: int | None = None) -> Source:
    """Read the rows of a source (the first `limit`) into records, and note those that cannot be used."""
    options = source.entry.data_format
    with placed(source.index, "data_format"):
        to_record: DataFormat = plugins.call_provider(DataFormatPlugin, "data_formats", options.type, options)
    words = "a record"
    to_record = plugins.guarded(DataFormatPlugin, "data_formats", options.type, to_record, Record, words)
    with placed(source.index):
        rows = _rows(source.entry, plugins)
        source.records = list(source.convert(itertools.islice(rows, limit), to_record))
    return source


def _rows(entry: DatasetEntry, plugins: PluginManager) -> Iterator[Row]:
    """The rows that the entry's reader yields."""
    for row in plugins.iterate_provider(ReaderPlugin, "readers", entry.type, entry):
        if not isinstance(row, Row) or not isinstance(row.origin, Origin):
            reader = plugins.provider(ReaderPlugin, "readers", entry.type)
            what = f"a row with {shown(row.origin)} as its origin" if isinstance(row, Row) else shown(row)
            raise PluginError(f"plugin '{reader}': read yielded {what}; yield Row(values, Origin(file, number))")
        yield row


@contextmanager
def placed(index: int, *keys: str) -> Iterator[None]:
    """Give the options that a reader or format complains about their place in the configuration."""
    try:
        yield
    except ConfigError as error:
        raise error.below(("datasets", index, *keys)) from error
