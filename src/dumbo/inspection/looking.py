"""An inspection: the rows to show, the sums over all of them, and what is strange."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dumbo.data.records import Record
from dumbo.data.source_encoder import SourceEncoder, common_template
from dumbo.errors import DataError
from dumbo.inspection.anomalies import Anomaly, bad_row_anomalies, find_anomalies
from dumbo.inspection.limits import known_limit
from dumbo.inspection.reading import (
    SourceShelf,
    bind_services,
    choose_sources,
    missing_row,
    refuse_prepared,
    rows_numbered,
)
from dumbo.inspection.shown import ShownRow, show_bad_rows, show_row
from dumbo.inspection.tables import Table, sum_tables
from dumbo.inspection.tally import EXPLAINED, Tally, tally_source
from dumbo.inspection.tokens import explain_record, load_tokenizer, special_tokens

if TYPE_CHECKING:
    from dumbo.configure import Configured
    from dumbo.console import Console
    from dumbo.data.sources import Source


@dataclass(frozen=True, slots=True)
class Sums:
    """What all rows of the chosen sources add up to."""

    sources: tuple[Source, ...]
    tables: tuple[Table, ...]
    bad: tuple[Anomaly, ...]
    """The bad rows of each source."""
    strange: tuple[Anomaly, ...]
    """What is strange about the others."""

    def bad_rows(self, limit: int) -> list[ShownRow]:
        """The first bad rows of the sources, in the order of their files."""
        return [row for source in self.sources for row in show_bad_rows(source.bad.problems)][:limit]

    @property
    def num_bad(self) -> int:
        """All bad rows."""
        return sum(source.bad.count for source in self.sources)


class Inspection:
    """The chosen sources of a configuration, read and ready to be looked at.

    Raises:
        DumboError: no such source; rows that cannot be read; a tokenizer or train format that cannot be had.
    """

    def __init__(self, configured: Configured, wanted: str | None, console: Console) -> None:
        config, plugins = configured.config, configured.plugins
        refuse_prepared(config)
        shelf = SourceShelf(config, plugins)
        bind_services(plugins, "inspect", console.say, shelf.records)
        self._console = console
        self._sources = [shelf.take(index) for index in choose_sources(config, wanted)]
        self._tokenizer = load_tokenizer(config, plugins)
        self._special = special_tokens(self._tokenizer)
        self._encoders = [SourceEncoder(source, plugins, self._tokenizer) for source in self._sources]
        common_template(self._encoders)
        self._limit = known_limit(config)

    def rows(self, limit: int, number: int | None = None) -> Iterator[ShownRow]:
        """The first rows of every source; with a `number`, those that messages call so.

        Raises:
            DumboError: no source has a row of this number.
        """
        found = False
        for source, encoder in zip(self._sources, self._encoders, strict=True):
            records, problems = (source.records, []) if number is None else rows_numbered(source, number)
            found = found or bool(records or problems)
            yield from itertools.islice((self._show(record, encoder) for record in records), limit)
            yield from show_bad_rows(problems)
        if number is not None and not found:
            raise missing_row(number, self._sources)

    def add_up(self) -> Sums:
        """Go through all rows."""
        tallies: list[tuple[Source, Tally]] = []
        bad: list[Anomaly] = []
        strange: list[Anomaly] = []
        for source, encoder in zip(self._sources, self._encoders, strict=True):
            records = self._console.track(source.records, f"reading {source.label}", len(source.records))
            tally = tally_source(
                source, encoder, self._tokenizer, records=records, explained=EXPLAINED, limit=self._limit
            )
            tallies.append((source, tally))
            bad += bad_row_anomalies(source)
            strange += find_anomalies(source, tally, encoder.warnings)
        return Sums(tuple(self._sources), tuple(sum_tables(tallies)), tuple(bad), tuple(strange))

    def _show(self, record: Record, encoder: SourceEncoder) -> ShownRow:
        try:
            return show_row(record.origin, explain_record(record, encoder, self._tokenizer), self._special)
        except DataError as error:
            return ShownRow(f"{record.origin.source}:{record.origin.row}", problems=tuple(error.problems))
