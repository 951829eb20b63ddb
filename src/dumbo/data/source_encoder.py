"""The train format of one source: examples of its records in batches, and explanations of single ones."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from dumbo.data.records import Example, Record
from dumbo.data.sources import Source, placed
from dumbo.data.train_format import Explanation, TrainFormatter
from dumbo.errors import DataError, PluginError
from dumbo.plugin_loader import TrainFormatPlugin
from dumbo.plugin_results import example_fault, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dumbo.plugin_manager import PluginManager

_AT_ONCE = 256
"""Records of a batch: enough to keep the tokenizer's threads busy, few enough to see a bad row soon."""
_THREADS = 2
"""While the tokenizer, which is not Python, works on a batch, another is rendered. More threads wait for each other."""


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
        self._index, self._num_embeddings = source.index, num_embeddings
        self._encode: Callable[[Record], Example] = plugins.guarded(*provider, made, Example, "an Example")
        self.formatter: TrainFormatter | None = made if isinstance(made, TrainFormatter) else None
        """What else the format can do, where it is more than a function."""
        if self.formatter is not None:
            self._encode_batch = plugins.guarded(
                *provider, self.formatter.encode_batch, list, "a list with one result for each"
            )
            self._explain = plugins.guarded(*provider, self.formatter.explain, Explanation, "an Explanation")

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is doubtful about every row."""
        return tuple(self.formatter.warnings) if self.formatter is not None else ()

    def encode(self, records: Iterable[Record]) -> Iterator[tuple[Record, Example | DataError]]:
        """Each record with its example, or with what makes it unusable; in the order of the records."""
        if self.formatter is None:
            with placed(self._index, "train_format"):
                for record in records:
                    yield record, self._checked(record, self._result(record))
            return
        batches = _batches(records)
        pool = ThreadPoolExecutor(_THREADS)
        try:
            waiting = [(batch, pool.submit(self._results, batch)) for batch in itertools.islice(batches, _THREADS + 1)]
            while waiting:
                batch, future = waiting.pop(0)
                with placed(self._index, "train_format"):
                    results = future.result()
                waiting += [(more, pool.submit(self._results, more)) for more in itertools.islice(batches, 1)]
                for record, result in zip(batch, results, strict=True):
                    yield record, self._checked(record, result)
        finally:
            pool.shutdown(cancel_futures=True)

    def explain(self, record: Record) -> Explanation | None:
        """The record's example, explained; None where the format is a function that explains nothing.

        Raises:
            DataError: the record cannot be used.
            PluginError: the explanation is of another example than training gets.
        """
        if self.formatter is None:
            return None
        with placed(self._index, "train_format"):
            explanation: Explanation = self._explain(record)
        [(_, ours)] = self.encode([record])
        theirs = explanation.example
        where = f"{record.origin.source}:{record.origin.row}"
        if isinstance(ours, DataError):
            raise ours
        if (list(ours.input_ids), list(ours.labels)) != (list(theirs.input_ids), list(theirs.labels)):
            raise PluginError(f"plugin '{self.plugin}': {where} is explained as another example than it is")
        if len(explanation.texts) != len(ours.input_ids):
            message = f"is explained with {len(explanation.texts)} texts for {len(ours.input_ids)} tokens"
            raise PluginError(f"plugin '{self.plugin}': {where} {message}")
        return explanation

    def _results(self, records: Sequence[Record]) -> Sequence[Example | DataError]:
        results: Sequence[Example | DataError] = self._encode_batch(records)
        if len(results) != len(records):
            raise PluginError(f"plugin '{self.plugin}': {len(results)} results for a batch of {len(records)} records")
        for result in results:
            if not isinstance(result, Example | DataError):
                raise PluginError(f"plugin '{self.plugin}': a batch has {shown(result)} in it; it must have Examples")
        return results

    def _result(self, record: Record) -> Example | DataError:
        try:
            return self._encode(record)
        except DataError as error:
            return error

    def _checked(self, record: Record, result: Example | DataError) -> Example | DataError:
        """The result, its numbers packed: lists of a large data set would not fit into memory."""
        if isinstance(result, DataError):
            return result
        fault = example_fault(result, self._num_embeddings)
        if fault:
            return record.origin.error(f"the plugin '{self.plugin}' made an example with {fault}")
        return Example(array("i", result.input_ids), array("i", result.labels), result.origin, result.counts)


def _batches(records: Iterable[Record]) -> Iterator[list[Record]]:
    remaining = iter(records)
    while batch := list(itertools.islice(remaining, _AT_ONCE)):
        yield batch
