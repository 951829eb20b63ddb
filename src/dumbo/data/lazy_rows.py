"""The rows of a source read and encoded a few at a time, as often as they are asked for."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from dumbo.data.encoded import trained_tokens
from dumbo.data.records import Example, Record, Row, texts_of
from dumbo.data.source_encoder import AT_ONCE, SourceEncoder
from dumbo.data.sources import Source, placed, read_rows, record_maker
from dumbo.errors import DataError

if TYPE_CHECKING:
    from dumbo.plugin_manager import PluginManager

_CHARACTERS_AT_ONCE = 1 << 21
"""A batch of long documents ends earlier, so that it takes little memory."""


class LazySource:
    """One source of a stream."""

    def __init__(self, source: Source, plugins: PluginManager, encoder: SourceEncoder) -> None:
        """Nothing is read yet; bad rows will be noted in `source`, or raised where they are errors.

        However often rows are read, a row is noted and counted once.
        """
        self.source = source
        self.counts: Counter[str] = Counter()
        """What the train format counted on its way."""
        self._plugins, self._encoder = plugins, encoder
        self._noted = 0
        """The rows before this one were noted and counted."""

    def examples(self, skip: int = 0) -> Iterator[Example | None]:
        """An example for each row behind the first `skip`, which are read and nothing more; None for a bad row.

        Raises:
            DataError: a row cannot be used, unless the configuration drops such rows.
        """
        records, row = _records(self.source, self._plugins, skip), skip
        while batch := list(_first_of(records)):
            # All at once: while the encoder works, Python's garbage is left lying about.
            encoded = iter(list(self._encoder.encode([item for item in batch if not isinstance(item, DataError)])))
            for item in batch:
                yield self._usable(row, item if isinstance(item, DataError) else next(encoded)[1])
                row += 1

    def _usable(self, row: int, result: Example | DataError) -> Example | None:
        is_new, self._noted = row >= self._noted, max(self._noted, row + 1)
        try:
            if isinstance(result, DataError):
                raise result
            trained_tokens(result)
        except DataError as error:
            if self.source.bad.stops_early:
                raise
            if is_new:
                self.source.bad.note(error)
            return None
        if is_new:
            self.counts.update(result.counts)
        return result


def iterate_records(source: Source, plugins: PluginManager) -> Iterator[Record]:
    """The records of a source, read anew; those that cannot be used are left out, or raised where they are errors."""
    for item in _records(source, plugins, 0):
        if not isinstance(item, DataError):
            yield item
        elif source.bad.stops_early:
            raise item


def _records(source: Source, plugins: PluginManager, skip: int) -> Iterator[Record | DataError]:
    to_record = record_maker(source.entry, source.index, plugins)

    def convert(row: Row) -> Record | DataError:
        try:
            return to_record(row)
        except DataError as error:
            return error

    with source.stamps.unchanged(), placed(source.index):
        yield from map(convert, itertools.islice(read_rows(source.entry, plugins), skip, None))


def _first_of(records: Iterator[Record | DataError]) -> Iterator[Record | DataError]:
    """The next records, as many as are a batch."""
    characters = 0
    for item in itertools.islice(records, AT_ONCE):
        yield item
        characters += 0 if isinstance(item, DataError) else sum(map(len, texts_of(item)))
        if characters >= _CHARACTERS_AT_ONCE:
            return
