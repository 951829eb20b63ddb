"""Tokens and labels of every source: from the store where they are in it, else made, and kept there."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Protocol

from dumbo.console import Console, clock
from dumbo.data.bad_rows import BadRows
from dumbo.data.encoded import EncodedRows, RowWriter
from dumbo.data.fingerprints import encoding_of, moment_of, rows_key, tokenizer_digest, tokens_key
from dumbo.data.records import Example
from dumbo.data.source_encoder import SourceEncoder, common_template
from dumbo.data.sources import Source, read_sources
from dumbo.data.store import Store
from dumbo.errors import DataError, RunError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dumbo.config.schema import RunConfig
    from dumbo.plugin_manager import PluginManager

_LONG = 5.0
"""Seconds from which on it is said how long the making of tokens took."""


@dataclass(frozen=True)
class Task:
    """A source whose tokens are wanted."""

    source: Source
    encoder: SourceEncoder
    encoding: dict[str, Any]
    """What decides on the tokens of its records, by the words of messages."""
    moment: str
    """When they are made, where that matters; else empty."""


class Preparation(Protocol):
    """Where the tokens of a run come from."""

    def read(self, config: RunConfig, plugins: PluginManager) -> list[Source]:
        """The sources, each of whose rows is known to become a record.

        Raises:
            DataError: rows that cannot be used, unless the configuration drops them.
        """
        ...

    def encode(self, task: Task, plugins: PluginManager, console: Console) -> EncodedRows:
        """The tokens and labels of a source.

        Raises:
            DataError: rows that cannot be used, unless the configuration drops them.
        """
        ...


def prepare_sources(
    preparation: Preparation,
    sources: Sequence[Source],
    plugins: PluginManager,
    tokenizer: PreTrainedTokenizerBase,
    num_embeddings: int | None,
    console: Console,
) -> list[EncodedRows]:
    """The rows of each source as tokens with labels; the tokenizer gets the chat template that they are written by.

    `num_embeddings` is how many tokens the model knows, where that is known.

    Raises:
        DataError: rows that cannot be used, unless the configuration drops them.
    """
    encoders = [SourceEncoder(source, plugins, tokenizer, num_embeddings) for source in sources]
    known = tokenizer_digest(tokenizer)
    keep_template(encoders, tokenizer)
    prepared = []
    for source, encoder in zip(sources, encoders, strict=True):
        for warning in encoder.warnings:
            console.say(f"warning: {source.label}: {warning}")
        encoding = encoding_of(source.entry, known, encoder.chat_template)
        moment = moment_of(encoding, tokenizer)
        prepared.append(preparation.encode(Task(source, encoder, encoding, moment), plugins, console))
    return prepared


def keep_template(encoders: Sequence[SourceEncoder], tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer the chat template that its rows are written by, so that it is saved with the model."""
    template, own = common_template(encoders), tokenizer.chat_template
    if template and template != (own.get("default") if isinstance(own, dict) else own):
        tokenizer.chat_template = template


@dataclass(frozen=True)
class FromReaders:
    """Rows are read, and made tokens of; what is made is kept in the store, and what is in it is not made again."""

    store: Store | None

    def read(self, config: RunConfig, plugins: PluginManager) -> list[Source]:
        """Go through the rows of all sources of which the store knows nothing."""
        return read_sources(config, plugins, store=self.store)

    def encode(self, task: Task, plugins: PluginManager, console: Console) -> EncodedRows:
        """From the store, where it has the source as this run would make it."""
        source, encoder, key = task.source, task.encoder, self.key_of(task, plugins)
        if self.store is None or key is None:
            return encode_rows(source, encoder, RowWriter(), console)
        found = self.store.find(key)
        if found is None:
            with self.store.writing(key, console.say) as folder:
                found = self.store.find(key)  # Another process may have been faster.
                if found is None:
                    return self._write(task, key, folder, plugins, console)
        if not _fits(found, source, encoder):
            return encode_rows(source, encoder, RowWriter(), console)
        source.bad.add_facts(found.facts)
        console.say(f"{source.label}: {len(found.dataset):,} rows from the cache")
        return found

    def _write(self, task: Task, key: str, folder: Path, plugins: PluginManager, console: Console) -> EncodedRows:
        source, encoder = task.source, task.encoder
        assert self.store is not None and source.key is not None  # There is no key without them.
        facts = {"records": len(source.records), **source.bad.as_facts()}
        try:
            rows = encode_rows(source, encoder, _resumed(folder, encoder.num_embeddings), console)
            if rows_key(source.entry, plugins) != source.key:
                raise RunError(f"{source.label} was changed while it was read; start again")
        except RunError:
            RowWriter(folder).clear()  # Rows of two contents: nobody is to go on with them.
            raise
        self.store.note_rows(source.key, facts)
        return self.store.settle(key, source.label, rows)

    def key_of(self, task: Task, plugins: PluginManager) -> str | None:
        """What the source's tokens are kept under; None where they are not."""
        return tokens_key(task.source.key, task.source.entry, plugins, task.encoding, task.moment)


def _fits(found: EncodedRows, source: Source, encoder: SourceEncoder) -> bool:
    """Whether this run would have made the same: other embeddings have other bad rows, and bad rows may be errors."""
    known = encoder.num_embeddings
    if known is not None and found.largest_token >= known:
        return False
    return not found.facts.get("bad") or (not source.bad.stops_early and found.facts.get("embeddings") in (None, known))


def _resumed(folder: Path, num_embeddings: int | None) -> RowWriter:
    """A writer that goes on with what was begun, unless that was for embeddings by which other rows are bad."""
    writer = RowWriter.resumed(folder)
    begun = writer.facts.get("embeddings")
    fits = num_embeddings is None or writer.largest_token < num_embeddings
    if writer.facts and begun != num_embeddings and not (begun is None and fits):
        writer.clear()
        return RowWriter(folder)
    return writer


def encode_rows(source: Source, encoder: SourceEncoder, writer: RowWriter, console: Console) -> EncodedRows:
    """Make tokens and labels of the records behind those that `writer` has, and hand them to it.

    Raises:
        DataError: rows that cannot be used, unless the configuration drops them.
    """
    began, done = time.monotonic(), writer.facts.get("records", 0)
    bad = BadRows(source.bad.stops_early)
    bad.add_facts(writer.facts)
    if done:
        console.say(f"{source.label}: going on behind the first {done:,} rows, which are there already")
    rest = itertools.islice(source.records, done, None)
    tracked = console.track(rest, f"tokenising {PurePath(source.label).name}", len(source.records), done)
    count = done
    for count, (_, result) in enumerate(encoder.encode(tracked), done + 1):
        try:
            if not isinstance(result, Example):
                raise result
            writer.add(result)
        except DataError as error:
            bad.note(error)
            if bad.are_enough:
                break
        if writer.is_full:
            writer.flush({"records": count, "embeddings": encoder.num_embeddings, **bad.as_facts()})
    source.bad.add(bad.count, bad.problems)
    source.settle(writer.num_rows)
    if count != len(source.records):
        raise RunError(f"{source.label} had {len(source.records):,} usable rows, and then {count:,}: it was changed")
    seconds = time.monotonic() - began
    if seconds >= _LONG:
        rate = (count - done) / seconds
        console.say(f"{source.label}: {count - done:,} rows tokenised in {clock(seconds)}, {rate:,.0f} per second")
    return writer.finish({"records": count, "embeddings": encoder.num_embeddings, **bad.as_facts()})
