"""Folders of prepared data: written by `dumbo preprocess --output`, trained from on any machine."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dumbo import __version__
from dumbo.console import Console
from dumbo.data.bad_rows import BadRows
from dumbo.data.encoded import EncodedRows, read_rows
from dumbo.data.fingerprints import code_version, digest, entry_options
from dumbo.data.preparing import FromReaders, Preparation, Task
from dumbo.data.records import Record
from dumbo.data.sources import Records, Source
from dumbo.data.store import KEY, Store, open_store
from dumbo.errors import ConfigError, DataError, RunError

if TYPE_CHECKING:
    from dumbo.config.schema import RunConfig
    from dumbo.plugin_manager import PluginManager

TOKENIZER = "tokenizer"
"""The folder of the tokenizer, in one of prepared data."""

_KEY = "trainer.data.prepared"
_MANIFEST = "prepared.json"
_FORMAT = 1
"""Goes up whenever the folder is written otherwise."""
_AGAIN = "write the configuration as it was, or prepare the data again: dumbo preprocess CONFIG --output FOLDER"


def preparation_of(config: RunConfig) -> Preparation:
    """Where the tokens of a run come from.

    Raises:
        ConfigError: the folder of prepared data is none.
        RunError: the folder of the cache cannot be written to.
    """
    folder = config.trainer.data.prepared
    if config.trainer.data.streaming:
        return FromReaders(None)
    return FromReaders(open_store(config)) if folder is None else FromFolder.open(Path(folder).expanduser())


@dataclass
class IntoFolder:
    """Rows are read, and made tokens of, into a folder that is whole without the sources."""

    store: Store
    _readers: FromReaders = field(init=False)
    _sources: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """The folder is a store of its own."""
        self._readers = FromReaders(self.store)

    def read(self, config: RunConfig, plugins: PluginManager) -> list[Source]:
        """Go through the rows of all sources."""
        return self._readers.read(config, plugins)

    def encode(self, task: Task, plugins: PluginManager, console: Console) -> EncodedRows:
        """Into the folder; what is in it already and can be told to be the same is not made again."""
        source = task.source
        found = {"records": len(source.records), **source.bad.as_facts()}
        rows = self._readers.encode(task, plugins, console)
        key = self._readers.key_of(task, plugins)
        if key is None or self.store.find(key) is None:
            key = f"once-{uuid.uuid4().hex}"
            rows = self.store.copy(key, rows, source.label)
        self._sources.append(
            {"folder": key, "entry": entry_options(source.entry), "encoding": task.encoding, "read": found}
        )
        return rows

    def finish(self) -> None:
        """All sources are in the folder: from now on it can be trained from. What was in it before is removed."""
        facts = {"format": _FORMAT, "dumbo": __version__, "code": code_version(), "sources": self._sources}
        self.store.write_whole(_MANIFEST, json.dumps(facts, indent=1))
        self.store.keep_only({source["folder"] for source in self._sources})


@dataclass(frozen=True)
class FromFolder:
    """Tokens are those of a folder of prepared data; the sources need not be there."""

    folder: Path
    sources: Sequence[Mapping[str, Any]]
    code: str

    @classmethod
    def open(cls, folder: Path) -> FromFolder:
        """Read what is in `folder`.

        Raises:
            ConfigError: it holds no prepared data, or not all of it.
        """
        try:
            facts = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
            if facts["format"] != _FORMAT:
                raise ConfigError.at(_KEY, f"{folder} was prepared by another version of dumbo", _AGAIN)
            if not all(KEY.fullmatch(source["folder"]) for source in facts["sources"]):
                raise ValueError("a source is named that does not lie in the folder")
            return cls(folder, facts["sources"], facts["code"])
        except OSError as error:
            hint = f"dumbo preprocess CONFIG --output {folder} makes it, and is to be started again if it was stopped"
            raise ConfigError.at(_KEY, f"there is no whole set of prepared data in {folder}", hint) from error
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError.at(_KEY, f"{folder / _MANIFEST} cannot be read", _AGAIN) from error

    def read(self, config: RunConfig, plugins: PluginManager) -> list[Source]:
        """The sources as they were prepared.

        Raises:
            ConfigError: the configuration has other ones.
            DataError: rows could not be used when they were prepared, and the configuration does not drop such rows.
        """
        if len(config.datasets) != len(self.sources):
            message = (
                f"{self.folder} has {len(self.sources)} sources, and there are {len(config.datasets)} under datasets"
            )
            raise ConfigError.at(_KEY, message, _AGAIN)
        sources = []
        for index, (entry, known) in enumerate(zip(config.datasets, self.sources, strict=True)):
            self._compare(known["entry"], entry_options(entry), f"datasets.{index}")
            bad = BadRows(config.trainer.data.on_bad_row == "error")
            bad.add_facts(known["read"])
            source = Source(entry, index, bad, Records(self._refuse, None, known["read"]["records"]))
            source.settle(known["read"]["records"])
            sources.append(source)
        return sources

    def encode(self, task: Task, plugins: PluginManager, console: Console) -> EncodedRows:
        """From the folder.

        Raises:
            ConfigError: this run would write its tokens otherwise.
            RunError: the files are not there or damaged.
        """
        source, encoder = task.source, task.encoder
        known = self.sources[source.index]
        self._compare(known["encoding"], json.loads(json.dumps(task.encoding)), f"datasets.{source.index}")
        try:
            rows = read_rows(self.folder / known["folder"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self.folder} is damaged: {source.label} cannot be read from it\n    {_AGAIN}") from error
        source.bad.add_facts(rows.facts)
        if source.bad.count and source.bad.stops_early:
            raise DataError(source.bad.problems)
        if encoder.num_embeddings is not None and rows.largest_token >= encoder.num_embeddings:
            message = (
                f"{source.label} has a token {rows.largest_token}, and the model {encoder.num_embeddings} embeddings"
            )
            raise ConfigError.at(_KEY, message, _AGAIN)
        if self.code != code_version() and source.index == 0:
            console.say("note: the data was prepared by other versions of dumbo or of the libraries that it uses")
        console.say(f"{source.label}: {len(rows.dataset):,} rows from {self.folder}")
        return rows

    def _compare(self, before: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
        then, today = dict(_leaves(before)), dict(_leaves(now))
        other = [name for name in {**then, **today} if then.get(name) != today.get(name)]
        if other:
            shown = [f"{name} (then {_shown(then.get(name))}, now {_shown(today.get(name))})" for name in other]
            message = f"{self.folder} was prepared with another {where}: {', '.join(shown)}"
            raise ConfigError.at(_KEY, message, _AGAIN)

    def _refuse(self) -> Iterator[Record]:
        message = f"a plugin asks for the rows themselves, and {self.folder} has none but their tokens"
        hint = f"if it learns a tokenizer: the one it learned is in {self.folder / TOKENIZER} (model.tokenizer.path)"
        raise ConfigError.at(_KEY, message, hint, "else remove it, to read the sources again")


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings by their dotted keys."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"one with digest {digest(value)[:8]}"
