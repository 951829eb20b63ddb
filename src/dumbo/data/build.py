"""The data side of a run: rows read into records before the model loads, then made into the sets to train on."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dumbo.console import Console
from dumbo.data.collate import PaddingCollator
from dumbo.data.dataset import TokenDataset
from dumbo.data.records import IGNORED, DataFormat, Example, Record, TrainFormat
from dumbo.errors import ConfigError, DataError, Problem, RunError
from dumbo.plugin_loader import DataFormatPlugin, DatasetPlugin, ReaderPlugin, TrainFormatPlugin

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dumbo.config.schema import DatasetEntry, RunConfig
    from dumbo.plugin_manager import PluginManager

_MOST_BAD_ROWS = 1000
"""Bad rows that are collected before reading stops: enough to see a pattern."""
_WAYS_OUT = (
    "write trainer.data.too_long: drop, truncate or split, or raise trainer.data.sequence_length",
    "'drop' leaves these rows out, 'truncate' cuts their ends off, 'split' cuts them into several",
)


@dataclass
class Source:
    """One entry under `datasets:` and what has become of its rows."""

    entry: DatasetEntry
    label: str
    records: list[Record] = field(default_factory=list)
    bad_rows: list[Problem] = field(default_factory=list)
    too_long: int = 0
    emptied: int = 0
    """Pieces of too long rows that were left out, because cutting left nothing to train in them."""
    examples: list[Example] = field(default_factory=list)


@dataclass(frozen=True)
class Datasets:
    """What the trainer gets."""

    train: TokenDataset
    evaluation: TokenDataset | None
    padding_collator: PaddingCollator


def read_sources(config: RunConfig, plugins: PluginManager, limit: int | None = None) -> list[Source]:
    """Read every source (its first `limit` rows) into records.

    Raises:
        DataError: rows that cannot be used, unless `on_bad_row` drops them; a source without any row.
    """
    sources = []
    for index, entry in enumerate(config.datasets):
        source = Source(entry, _label(entry, index))
        with _at(index, "data_format"):
            to_record: DataFormat = plugins.call_provider(
                DataFormatPlugin, "data_formats", entry.data_format.type, entry.data_format
            )
        to_record = plugins.guarded(DataFormatPlugin, to_record, entry.data_format.type)
        rows = itertools.islice(plugins.iterate_provider(ReaderPlugin, "readers", entry.type, entry), limit)
        with _at(index):
            source.records = list(_convert(rows, to_record, source))
        _settle_bad_rows(source, config, index)
        sources.append(source)
    return sources


def build_datasets(
    sources: Sequence[Source],
    config: RunConfig,
    plugins: PluginManager,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    console: Console,
) -> Datasets:
    """Make tokens and labels of all records, hold rows out for evaluation, and print a table of the sources.

    Raises:
        DataError: rows that cannot be used, or that are too long, unless the configuration says what to do with them.
    """
    limit = _sequence_length(config, longest_sequence(model))
    for index, source in enumerate(sources):
        options = source.entry.train_format
        with _at(index, "train_format"):
            encode: TrainFormat = plugins.call_provider(
                TrainFormatPlugin, "train_formats", options.type, options, tokenizer
            )
        encode = plugins.guarded(TrainFormatPlugin, encode, options.type)
        found = len(source.bad_rows)
        examples = list(_convert(console.track(source.records, f"tokenising {source.label}"), encode, source))
        if len(source.bad_rows) > found:
            _settle_bad_rows(source, config, index)
        source.examples = list(_fit(examples, limit, config.trainer.data.too_long, source))
    _print_table(sources, limit, console)
    dataset = TokenDataset.from_examples(example for source in sources for example in source.examples)
    train, evaluation = _hold_out(dataset, config)
    train = plugins.fold(DatasetPlugin, train, config)
    if not len(train):
        raise RunError("no training rows are left")
    return Datasets(train, evaluation, PaddingCollator(tokenizer.pad_token_id))


@contextmanager
def _at(index: int, *keys: str) -> Iterator[None]:
    """Give the options that a reader or format complains about their place in the configuration."""
    try:
        yield
    except ConfigError as error:
        raise error.below(("datasets", index, *keys)) from error


def _convert(items: Iterable[Any], convert: Any, source: Source) -> Iterator[Any]:
    """The items converted; those that cannot be are noted in the source."""
    for item in items:
        try:
            yield convert(item)
        except DataError as error:
            source.bad_rows += error.problems
            if len(source.bad_rows) >= _MOST_BAD_ROWS:
                return


def _settle_bad_rows(source: Source, config: RunConfig, index: int) -> None:
    if source.bad_rows and config.trainer.data.on_bad_row == "error":
        raise DataError(source.bad_rows)
    if not source.records or len(source.bad_rows) >= _MOST_BAD_ROWS:
        if source.bad_rows:
            raise DataError(source.bad_rows)
        raise ConfigError([Problem("has no rows", ("datasets", index))])


def _fit(examples: Iterable[Example], limit: int | None, policy: str, source: Source) -> Iterator[Example]:
    """The examples within `limit` tokens, and what `policy` makes of the longer ones."""
    longest, first = 0, None
    for example in examples:
        length = len(example.input_ids)
        if limit is None or length <= limit:
            yield example
            continue
        source.too_long += 1
        longest, first = max(longest, length), first or example
        pieces = [example] if policy == "error" else _shorten(example, limit, policy)
        for piece in pieces:
            if any(label != IGNORED for label in piece.labels[1:]):
                yield piece
            else:
                source.emptied += 1
    if first is not None and policy == "error":
        count = f"{source.too_long} row is" if source.too_long == 1 else f"{source.too_long} rows are"
        message = f"{count} longer than {limit} tokens (the longest has {longest}); this is the first"
        raise first.origin.error(message, *_WAYS_OUT)


def _shorten(example: Example, limit: int, policy: str) -> Iterator[Example]:
    ids, labels = example.input_ids, example.labels
    if policy == "truncate":
        yield Example(ids[:limit], labels[:limit], example.origin)
    elif policy == "split":
        for start in range(0, len(ids), limit):
            yield Example(ids[start : start + limit], labels[start : start + limit], example.origin)


def longest_sequence(model: PreTrainedModel) -> int | None:
    """The most tokens that the model has positions for, by its configuration; None where it names no limit."""
    config: Any = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = getattr(config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def _sequence_length(config: RunConfig, model_limit: int | None) -> int | None:
    wanted = config.trainer.data.sequence_length
    if wanted is not None and model_limit is not None and wanted > model_limit:
        hint = "write less, or stretch the model by model.config_overrides: {max_position_embeddings: ...}"
        raise ConfigError.at("trainer.data.sequence_length", f"the model takes at most {model_limit} tokens", hint)
    return wanted if wanted is not None else model_limit


def _hold_out(dataset: TokenDataset, config: RunConfig) -> tuple[TokenDataset, TokenDataset | None]:
    """Training and evaluation rows: which are held out depends on the seed and the number of rows alone."""
    size = config.trainer.data.val_set_size
    if not size:
        return dataset, None
    import numpy as np

    count = size if isinstance(size, int) else max(1, round(size * len(dataset)))
    if count >= len(dataset):
        message = f"there are only {len(dataset)} rows, and some must be left to train on"
        raise ConfigError.at("trainer.data.val_set_size", message)
    order = np.random.default_rng([config.trainer.seed, 2**31]).permutation(len(dataset))
    return dataset.select(sorted(order[count:].tolist())), dataset.select(sorted(order[:count].tolist()))


def _label(entry: DatasetEntry, index: int) -> str:
    return str(getattr(entry, "path", f"datasets.{index}"))


def _print_table(sources: Sequence[Source], limit: int | None, console: Console) -> None:
    rows = []
    for source in sources:
        data = TokenDataset.from_examples(source.examples)
        share = f"{data.num_supervised / max(data.num_tokens, 1):.0%}"
        rows.append([source.label, len(data), data.num_tokens, share, len(source.bad_rows), source.too_long])
    console.table(["source", "rows", "tokens", "trained", "bad", "too long"], rows)
    if limit is not None:
        console.say(f"sequences of up to {limit} tokens")
    emptied = sum(source.emptied for source in sources)
    if emptied:
        console.say(f"left out {emptied} pieces of too long rows: nothing trained was in them")
    dropped = [problem for source in sources for problem in source.bad_rows]
    if dropped:
        console.say(f"dropped {len(dropped)} bad rows; the first: {str(dropped[0]).splitlines()[0]}")
