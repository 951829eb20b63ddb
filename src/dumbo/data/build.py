"""The data side of a run: rows read into records before the model loads, then made into the sets to train on."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dumbo.console import Console
from dumbo.data.collate import PaddingCollator
from dumbo.data.dataset import TokenDataset
from dumbo.data.lengths import LengthPolicy, sequence_length
from dumbo.data.records import DataFormat, Example, Origin, Record, Row, TrainFormat
from dumbo.errors import ConfigError, DataError, PluginError, Problem, RunError
from dumbo.plugin_loader import DataFormatPlugin, DatasetPlugin, ReaderPlugin, TrainFormatPlugin
from dumbo.plugin_results import example_fault, shown

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dumbo.config.schema import DatasetEntry, RunConfig
    from dumbo.plugin_manager import PluginManager

_MOST_BAD_ROWS = 1000
"""Bad rows that are kept for messages. Where they are errors, reading stops there: they are enough to see a pattern."""


@dataclass
class Source:
    """One entry under `datasets:` and what has become of its rows."""

    entry: DatasetEntry
    index: int
    stops_early: bool
    """Whether bad rows are errors, so that there is no point in finding all of them."""
    records: list[Record] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    bad_rows: list[Problem] = field(default_factory=list)
    num_bad: int = 0

    @property
    def label(self) -> str:
        """How tables call it: its path, where it has one."""
        return str(getattr(self.entry, "path", f"datasets.{self.index}"))

    def convert(self, items: Iterable[Any], function: Any) -> Iterator[Any]:
        """`function` of every item; those for which it raises a DataError are noted as bad rows."""
        for item in items:
            try:
                yield function(item)
            except DataError as error:
                self.num_bad += len(error.problems)
                self.bad_rows += error.problems[: _MOST_BAD_ROWS - len(self.bad_rows)]
                if self.stops_early and self.num_bad >= _MOST_BAD_ROWS:
                    return

    def settle(self, left: Sequence[Any]) -> None:
        """Raise where bad rows are errors, or where nothing is `left` of the rows."""
        if self.bad_rows and (self.stops_early or not left):
            raise DataError(self.bad_rows)
        if not left:
            raise ConfigError([Problem("has no rows", ("datasets", self.index))])


@dataclass(frozen=True)
class Datasets:
    """What the trainer gets."""

    train: TokenDataset
    evaluation: TokenDataset | None
    padding_collator: PaddingCollator
    table: Sequence[Mapping[str, Any]]
    """What became of each source: rows, tokens, and how many were trained, held out, bad, too long."""


def read_sources(config: RunConfig, plugins: PluginManager, limit: int | None = None) -> list[Source]:
    """Read every source (its first `limit` rows) into records.

    Raises:
        DataError: rows that cannot be used, unless `on_bad_row` drops them; a source without any row.
    """
    sources = []
    for index, entry in enumerate(config.datasets):
        source = Source(entry, index, stops_early=config.trainer.data.on_bad_row == "error")
        name = entry.data_format.type
        with _at(index, "data_format"):
            to_record: DataFormat = plugins.call_provider(DataFormatPlugin, "data_formats", name, entry.data_format)
        words = "a Conversation or Text"
        to_record = plugins.guarded(DataFormatPlugin, "data_formats", name, to_record, Record, words)
        with _at(index):
            rows = _rows(entry, plugins)
            source.records = list(source.convert(itertools.islice(rows, limit), to_record))
        source.settle(source.records)
        sources.append(source)
    return sources


def _rows(entry: DatasetEntry, plugins: PluginManager) -> Iterator[Row]:
    """The rows that the entry's reader yields."""
    for row in plugins.iterate_provider(ReaderPlugin, "readers", entry.type, entry):
        if not isinstance(row, Row) or not isinstance(row.origin, Origin):
            reader = plugins.provider(ReaderPlugin, "readers", entry.type)
            what = f"a row with {shown(row.origin)} as its origin" if isinstance(row, Row) else shown(row)
            raise PluginError(f"plugin '{reader}': read yielded {what}; yield Row(values, Origin(file, number))")
        yield row


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
    limit = sequence_length(config, model)
    for source in sources:
        source.examples = _encode(source, plugins, model, tokenizer, console)
    held_out = _choose_held_out(sources, config)
    train: list[Example] = []
    evaluation: list[Example] = []
    table: list[dict[str, Any]] = []
    start = 0
    for source in sources:
        lengths = LengthPolicy(limit, config.trainer.data.too_long)
        # Held out are whole rows: the pieces of a long one are never on both sides.
        ours: list[Example] = []
        theirs: list[Example] = []
        for row, example in enumerate(source.examples, start):
            (theirs if row in held_out else ours).extend(lengths.fit([example]))
        start += len(source.examples)
        lengths.settle()
        train, evaluation = train + ours, evaluation + theirs
        table.append(_table_row(source, [*ours, *theirs], len(theirs), lengths))
    _print_table(table, limit, sources, console)
    train_set = plugins.fold(DatasetPlugin, TokenDataset.from_examples(train), config)
    if not len(train_set):
        raise RunError("no training rows are left")
    if held_out and not evaluation:
        raise RunError("none of the held out rows is left: all of them were too long")
    evaluation_set = TokenDataset.from_examples(evaluation) if evaluation else None
    return Datasets(train_set, evaluation_set, PaddingCollator(tokenizer.pad_token_id), table)


def _encode(
    source: Source,
    plugins: PluginManager,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    console: Console,
) -> list[Example]:
    options = source.entry.train_format
    with _at(source.index, "train_format"):
        encode: TrainFormat = plugins.call_provider(
            TrainFormatPlugin, "train_formats", options.type, options, tokenizer
        )
    encode = plugins.guarded(TrainFormatPlugin, "train_formats", options.type, encode, Example, "an Example")
    plugin, num_embeddings = plugins.provider(TrainFormatPlugin, "train_formats", options.type), _num_embeddings(model)

    def checked(record: Record) -> Example:
        example = encode(record)
        fault = example_fault(example, num_embeddings)
        if fault:
            raise record.origin.error(f"the plugin '{plugin}' made an example with {fault}")
        return example

    records = console.track(source.records, f"tokenising {source.label}")
    examples = list(source.convert(records, checked))
    source.settle(examples)
    return examples


def _num_embeddings(model: PreTrainedModel) -> int | None:
    """How many tokens the model knows, where it can tell."""
    try:
        weight: Any = model.get_input_embeddings().weight
    except (AttributeError, NotImplementedError):
        return None
    return int(weight.shape[0])


@contextmanager
def _at(index: int, *keys: str) -> Iterator[None]:
    """Give the options that a reader or format complains about their place in the configuration."""
    try:
        yield
    except ConfigError as error:
        raise error.below(("datasets", index, *keys)) from error


def _choose_held_out(sources: Sequence[Source], config: RunConfig) -> frozenset[int]:
    """The rows to hold out, counted over all sources: whole sources, and a choice from the others that depends on the
    seed and the number of rows alone."""
    import numpy as np

    whole: list[int] = []
    others: list[int] = []
    start = 0
    for source in sources:
        (whole if source.entry.held_out else others).extend(range(start, start + len(source.examples)))
        start += len(source.examples)
    size = config.trainer.data.val_set_size
    if not size:
        return frozenset(whole)
    count = size if isinstance(size, int) else max(1, round(size * len(others)))
    if count >= len(others):
        message = f"there are only {len(others)} rows, and some must be left to train on"
        raise ConfigError.at("trainer.data.val_set_size", message)
    order = np.random.default_rng([config.trainer.seed, 2**31]).permutation(len(others))
    return frozenset([*whole, *(others[index] for index in order[:count])])


def _table_row(source: Source, examples: Sequence[Example], held_out: int, lengths: LengthPolicy) -> dict[str, Any]:
    data = TokenDataset.from_examples(examples)
    return {
        "source": source.label,
        "rows": len(examples),
        "tokens": data.num_tokens,
        "trained": data.num_supervised,
        "held_out": held_out,
        "bad": source.num_bad,
        "too_long": lengths.too_long,
        "emptied": lengths.emptied,
    }


def _print_table(
    rows: Sequence[Mapping[str, Any]], limit: int | None, sources: Sequence[Source], console: Console
) -> None:
    # Columns of which there is nothing to say are left away, but never a count that is not zero.
    kept = [name for name in rows[0] if name in ("source", "rows", "tokens", "trained") or any(r[name] for r in rows)]
    shown = [{**row, "trained": f"{row['trained'] / max(row['tokens'], 1):.0%}"} for row in rows]
    console.table([name.replace("_", " ") for name in kept], [[row[name] for name in kept] for row in shown])
    if limit is not None:
        console.say(f"sequences of up to {limit} tokens")
    dropped = [problem for source in sources for problem in source.bad_rows]
    if dropped:
        total = sum(source.num_bad for source in sources)
        console.say(f"dropped {total} bad row{'s' if total > 1 else ''}; the first: {str(dropped[0]).splitlines()[0]}")
