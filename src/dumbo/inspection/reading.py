"""Rows for looking at: all that become records, and every one that does not."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from dumbo.data.records import Record
from dumbo.data.sources import Source, paths_of, read_source
from dumbo.errors import ConfigError, DumboError, Problem, RunError
from dumbo.plugin_loader import Services

if TYPE_CHECKING:
    from dumbo.config.schema import RunConfig
    from dumbo.plugin_manager import PluginManager


class SourceShelf:
    """The sources of a run, each read when it is first asked for, and to its end: whatever `on_bad_row` says, a bad row
    does not keep others from being seen."""

    def __init__(self, config: RunConfig, plugins: PluginManager) -> None:
        self._config, self._plugins = config, plugins
        self._read: dict[int, Source] = {}

    def take(self, index: int) -> Source:
        """The source at this position under `datasets:`, with what became of its rows.

        Raises:
            DumboError: its rows cannot be read at all, or it has none.
        """
        if index not in self._read:
            source = read_source(self._config.datasets[index], index, self._plugins, stops_early=False)
            self._read[index] = source
            if not source.bad.count:
                source.settle(len(source.records))
        return self._read[index]

    def records(self) -> Iterator[Record]:
        """The records of all sources but those that are held out whole, as plugins ask for them."""
        for index, entry in enumerate(self._config.datasets):
            if not entry.held_out:
                yield from self.take(index).records


def choose_sources(config: RunConfig, wanted: str | None) -> list[int]:
    """The positions of the sources that `wanted` names, by number, path or file name; of all where it is None.

    Raises:
        DumboError: none is called so.
    """
    names = [paths_of(entry) or [f"datasets.{index}"] for index, entry in enumerate(config.datasets)]
    if wanted is None:
        return list(range(len(names)))
    for index, _ in enumerate(names):
        if wanted in (str(index), f"datasets.{index}"):
            return [index]
    found = [index for index, paths in enumerate(names) if any(wanted in (path, Path(path).name) for path in paths)]
    if not found:
        known = ", ".join(f"{index} ({', '.join(paths)})" for index, paths in enumerate(names))
        raise DumboError(f"--source {wanted}: there is no such source\n    sources are: {known}")
    return found


def refuse_prepared(config: RunConfig) -> None:
    """Raise a ConfigError where the run has its tokens from a folder of prepared data, which has no rows to look at."""
    if config.trainer.data.prepared is not None:
        hint = "remove it, to look at the rows of the sources"
        raise ConfigError.at("trainer.data.prepared", "there are tokens, and no rows to look at", hint)


def bind_services(
    plugins: PluginManager, verb: str, say: Callable[[str], None], records: Callable[[], Iterable[Record]]
) -> None:
    """Give every plugin what it may ask for where no model is loaded and no folder made."""

    def refuse(name: str) -> NoReturn:
        raise RunError(f"'{verb}' loads no model, and a plugin asks for '{name}'")

    plugins.bind(Services(output_dir=Path(), say=say, records=records, load_model=refuse))


def rows_numbered(source: Source, number: int) -> tuple[list[Record], list[Problem]]:
    """The records and the bad rows of a source whose row has this number, as messages show it."""
    records = [record for record in source.records if record.origin.row == number]
    return records, [problem for problem in source.bad.problems if problem.place and problem.place.line == number]


def missing_row(number: int, sources: Sequence[Source]) -> DumboError:
    """The error for a row that no source has, with those that there are."""
    places = [(record.origin.source, record.origin.row) for source in sources for record in source.records]
    places += [(p.place.file, p.place.line) for source in sources for p in source.bad.problems if p.place]
    ranges = []
    for file, group in itertools.groupby(sorted(places), key=lambda place: place[0]):
        numbers = [line for _, line in group]
        ranges.append(f"{file} has rows {min(numbers)} to {max(numbers)}")
    more = [f"... and {len(ranges) - 5} more files"] if len(ranges) > 5 else []
    return DumboError("\n    ".join([f"--row {number}: there is no such row", *ranges[:5], *more]))
