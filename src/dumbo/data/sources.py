"""The entries under `datasets:` and their rows as records: all are gone through before any model loads."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dumbo.data.bad_rows import BadRows
from dumbo.data.changed_files import FileStamps
from dumbo.data.fingerprints import rows_key
from dumbo.data.loss_weights import weighing
from dumbo.data.records import DataFormat, Origin, Record, Row, texts_of
from dumbo.errors import ConfigError, DataError, PluginError, Problem
from dumbo.plugin_loader import DataFormatPlugin, ReaderPlugin
from dumbo.plugin_results import shown
from dumbo.redact import redact_text

if TYPE_CHECKING:
    from dumbo.config.schema import DatasetEntry, RunConfig
    from dumbo.data.store import Store
    from dumbo.plugin_manager import PluginManager

FIRST_ROWS = 256
"""So many rows of each source of a stream are looked at before anything is trained."""

_KEPT_RECORDS, _KEPT_CHARACTERS = 100_000, 1 << 28
"""Records of a source that stay in memory, and their characters, which is less than 1 GiB; a source with more of them
is read again."""


class Records:
    """The records of a source, as often as they are asked for: from memory if they are few, else from the reader."""

    def __init__(self, read: Callable[[], Iterator[Record]], kept: list[Record] | None, count: int | None) -> None:
        """`read` yields them all; `count` is how many there are, if that is known."""
        self._read, self._kept, self._count = read, kept, count

    def __iter__(self) -> Iterator[Record]:
        """All records, in the order of the reader."""
        return iter(self._kept) if self._kept is not None else self._read()

    def __len__(self) -> int:
        """How many there are."""
        if self._count is None:
            self._count = sum(1 for _ in self)
        return self._count


def paths_of(entry: DatasetEntry) -> list[str]:
    """The paths that an entry names: none, one or a list."""
    path = getattr(entry, "path", None)
    return [] if path is None else [path] if isinstance(path, str) else [str(each) for each in path]


@dataclass
class Source:
    """One entry under `datasets:` and what has become of its rows."""

    entry: DatasetEntry
    index: int
    bad: BadRows
    records: Records = field(default_factory=lambda: Records(lambda: iter(()), [], 0))
    stamps: FileStamps = FileStamps((), MappingProxyType({}))
    """Its files as they were when the run began."""
    key: str | None = None
    """What its records are kept under; None where nothing of it is kept."""

    @property
    def label(self) -> str:
        """How tables call it: its path, where it has one; the first of several, and how many follow."""
        first, *others = paths_of(self.entry) or [f"datasets.{self.index}"]
        return redact_text(first) + (f" and {len(others)} more" if others else "")

    def convert(self, items: Iterable[Any], function: Any) -> Iterator[Any]:
        """`function` of every item; those for which it raises a DataError are noted as bad rows."""
        yield from _converted(items, function, self.bad)

    def settle(self, left: int) -> None:
        """Raise where bad rows are errors, or where none of the rows is `left`."""
        if self.bad.count and (self.bad.stops_early or not left):
            raise DataError(self.bad.problems)
        if not left:
            raise ConfigError([Problem("has no rows", ("datasets", self.index))])


def read_sources(
    config: RunConfig, plugins: PluginManager, limit: int | None = None, store: Store | None = None
) -> list[Source]:
    """Go through every source (its first `limit` rows), so that each row is known to become a record; of what is to be
    streamed, through the first rows.

    A source of which the `store` knows that is not read before somebody asks for its records.

    Raises:
        DataError: rows that cannot be used, unless `on_bad_row` drops them; a source without any row.
    """
    sources = []
    stops_early = config.trainer.data.on_bad_row == "error"
    for index, entry in enumerate(config.datasets):
        key, most = None, limit
        if config.trainer.data.streaming and not entry.held_out and limit is None:
            most = FIRST_ROWS
        if store is not None and most is None:
            with placed(index):
                key = rows_key(entry, plugins)
        facts = store.find_rows(key) if store is not None and key is not None else None
        if facts is not None and facts["bad"] and stops_early:
            facts = None  # It was read by somebody who drops them.
        source = read_source(entry, index, plugins, stops_early=stops_early, limit=most, facts=facts)
        source.key = key
        source.settle(len(source.records))
        sources.append(source)
    return sources


def read_source(
    entry: DatasetEntry,
    index: int,
    plugins: PluginManager,
    *,
    stops_early: bool,
    limit: int | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Source:
    """Go through the rows of an entry (the first `limit`) and note those that cannot be used; or take the `facts` of
    somebody who has."""
    bad = BadRows(stops_early)
    stamps = FileStamps.now(paths_of(entry))
    opened = _Opened(entry, index, plugins, limit, stamps)
    if facts is not None:
        bad.add_facts(facts)
        return Source(entry, index, bad, Records(opened.again, None, facts["records"]), stamps)
    kept: list[Record] | None = []
    count = characters = 0
    for record in opened.read(bad):
        count += 1
        if kept is not None:
            kept.append(record)
            characters += sum(map(len, texts_of(record)))
            if count > _KEPT_RECORDS or characters > _KEPT_CHARACTERS:
                kept = None
    return Source(entry, index, bad, Records(opened.again, kept, count), stamps)


@dataclass(frozen=True)
class _Opened:
    """An entry that may be read any number of times."""

    entry: DatasetEntry
    index: int
    plugins: PluginManager
    limit: int | None
    stamps: FileStamps

    def read(self, bad: BadRows) -> Iterator[Record]:
        """All records; rows that become none are noted."""
        to_record = record_maker(self.entry, self.index, self.plugins)
        with placed(self.index):
            rows = read_rows(self.entry, self.plugins)
            yield from _converted(itertools.islice(rows, self.limit), to_record, bad)

    def again(self) -> Iterator[Record]:
        """All records; the bad rows are known.

        Raises:
            RunError: the files are others by now.
        """
        with self.stamps.unchanged():
            yield from self.read(BadRows(stops_early=False))


def _converted(items: Iterable[Any], function: Any, bad: BadRows) -> Iterator[Any]:
    for item in items:
        try:
            yield function(item)
        except DataError as error:
            bad.note(error)
            if bad.are_enough:
                return


def record_maker(entry: DatasetEntry, index: int, plugins: PluginManager) -> DataFormat:
    """The data format of an entry."""
    options = entry.data_format
    with placed(index, "data_format"):
        to_record: DataFormat = plugins.call_provider(DataFormatPlugin, "data_formats", options.type, options)
    words = "a record"
    made = plugins.guarded(DataFormatPlugin, "data_formats", options.type, to_record, Record, words)
    return made if entry.loss_weight_field is None else weighing(made, entry.loss_weight_field)


def read_rows(entry: DatasetEntry, plugins: PluginManager) -> Iterator[Row]:
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
