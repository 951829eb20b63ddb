"""The train format of one source: examples of its records in batches, and explanations of single ones."""

from __future__ import annotations

import gc
import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dumbo.data.loss_weights import weigh_example
from dumbo.data.records import Conversation, Example, Record, Tokens
from dumbo.data.sources import Source, placed
from dumbo.data.train_format import Explanation, TrainFormatter
from dumbo.errors import ConfigError, DataError, PluginError, Problem
from dumbo.plugin_loader import TrainFormatPlugin
from dumbo.plugin_results import example_fault, packed_are_sound, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dumbo.plugin_manager import PluginManager

AT_ONCE = 256
"""Records of a batch: enough to keep the tokenizer's threads busy, few enough to see a bad row soon."""


class SourceEncoder:
    """Makes examples of the records of one source."""

    def __init__(
        self,
        source: Source,
        plugins: PluginManager,
        tokenizer: PreTrainedTokenizerBase,
        num_embeddings: int | None = None,
    ) -> None:
        """`num_embeddings` is how many tokens the model knows, where that is known.

        Raises:
            ConfigError: the format cannot be made with its options and this tokenizer.
        """
        options = source.entry.train_format
        provider = (TrainFormatPlugin, "train_formats", options.type)
        with placed(source.index, "train_format"):
            made = plugins.call_provider(*provider, options, tokenizer)
        self.plugin = plugins.provider(*provider)
        self.index, self.num_embeddings = source.index, num_embeddings
        self._encode: Callable[[Record], Example] = plugins.guarded(*provider, made, Example, "an Example")
        self.formatter: TrainFormatter | None = made if isinstance(made, TrainFormatter) else None
        """What else the format can do, where it is more than a function."""
        if self.formatter is not None:
            self._encode_batches = plugins.guarded_iterator(*provider[:2], options.type, self.formatter.encode_batches)
            self._explain = plugins.guarded(*provider, self.formatter.explain, Explanation, "an Explanation")

    @property
    def chat_template(self) -> str | None:
        """The template that rows are written by, where it is not the tokenizer's own."""
        return self.formatter.chat_template if self.formatter is not None else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is doubtful about every row."""
        return tuple(self.formatter.warnings) if self.formatter is not None else ()

    def encode(self, records: Iterable[Record]) -> Iterator[tuple[Record, Example | DataError]]:
        """Each record with its example, or with what makes it unusable; in the order of the records."""
        if self.formatter is None:
            with placed(self.index, "train_format"):
                for record in records:
                    yield record, _weighed(record, self._checked(record, self._result(record)))
            return
        batches, given = itertools.tee(_batches(records))
        encoded = self._encode_batches(given)
        with placed(self.index, "train_format"), _few_collections():
            for batch in batches:
                results = self._complete(batch, next(encoded, None))
                results = [_with_columns(*pair) for pair in zip(batch, results, strict=True)]
                gc.collect(1)
                if not packed_are_sound(results, self.num_embeddings):
                    results = [self._checked(*pair) for pair in zip(batch, results, strict=True)]
                for record, result in zip(batch, results, strict=True):
                    yield record, _weighed(record, result)

    def explain(self, record: Record) -> Explanation | None:
        """The record's example, explained; None where the format is a function that explains nothing.

        Raises:
            DataError: the record cannot be used.
            PluginError: the explanation is of another example than training gets.
        """
        if self.formatter is None:
            return None
        with placed(self.index, "train_format"):
            explanation: Explanation = self._explain(record)
            ours = self._checked(record, self._encode(record))
        theirs = explanation.example
        where = f"{record.origin.source}:{record.origin.row}"
        if isinstance(ours, DataError):
            raise ours
        if (list(ours.input_ids), list(ours.labels)) != (list(theirs.input_ids), list(theirs.labels)):
            raise PluginError(f"plugin '{self.plugin}': {where} is explained as another example than it is")
        if len(explanation.texts) != len(ours.input_ids):
            message = f"is explained with {len(explanation.texts)} texts for {len(ours.input_ids)} tokens"
            raise PluginError(f"plugin '{self.plugin}': {where} {message}")
        return explanation if record.weight == 1 else replace(explanation, example=weigh_example(ours, record.weight))

    def _complete(self, batch: Sequence[Record], results: Any) -> Sequence[Example | DataError]:
        if not isinstance(results, list) or len(results) != len(batch):
            what = f"{len(results)} results" if isinstance(results, list) else shown(results)
            raise PluginError(f"plugin '{self.plugin}': {what} for a batch of {len(batch)} records")
        for result in results:
            if not isinstance(result, Example | DataError):
                raise PluginError(f"plugin '{self.plugin}': a batch has {shown(result)} in it; it must have Examples")
        return results

    def _result(self, record: Record) -> Example | DataError:
        try:
            return _with_columns(record, self._encode(record))
        except DataError as error:
            return error

    def _checked(self, record: Record, result: Example | DataError) -> Example | DataError:
        """The result, its numbers packed: lists of a large data set would not fit into memory."""
        if isinstance(result, DataError):
            return result
        fault = example_fault(result, self.num_embeddings)
        if fault:
            return record.origin.error(f"the plugin '{self.plugin}' made an example with {fault}")
        packed = (array("i", result.input_ids), array("i", result.labels))
        return Example(*packed, result.origin, result.counts, result.columns)


def _weighed(record: Record, result: Example | DataError) -> Example | DataError:
    return result if record.weight == 1 or isinstance(result, DataError) else weigh_example(result, record.weight)


def _with_columns(record: Record, result: Example | DataError) -> Example | DataError:
    """The example with the columns that its record has for it."""
    if not isinstance(record, Conversation | Tokens) or record.columns is None or isinstance(result, DataError):
        return result
    return replace(result, columns={**result.columns, **record.columns(result.input_ids, result.labels)})


def common_template(encoders: Sequence[SourceEncoder]) -> str | None:
    """The chat template that the rows of all sources are written by, as far as they are by one.

    Raises:
        ConfigError: two sources have different ones: the model is saved with one, and inference has no other.
    """
    chosen = [(encoder.index, encoder.chat_template) for encoder in encoders if encoder.chat_template]
    for index, template in chosen[1:]:
        if template != chosen[0][1]:
            path = ("datasets", index, "train_format")
            hint = "the model is saved with one template; use the same for all sources (chat_template)"
            message = f"it writes by another chat template than datasets.{chosen[0][0]}"
            raise ConfigError([Problem(message, path, hints=(hint,))])
    return chosen[0][1] if chosen else None


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    remaining = iter(records)
    while batch := list(itertools.islice(remaining, AT_ONCE)):
        yield batch


@contextmanager
def _few_collections() -> Iterator[None]:
    """Collect young garbage after each batch, and nothing else: Python would go through all rows of a large data set
    again and again, which doubles the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
