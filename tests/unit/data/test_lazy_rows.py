"""Rows that are read and encoded a few at a time: what is skipped is not encoded, bad rows keep their place."""

import gc

import pytest

from dumbo.configure import configure
from dumbo.data.bad_rows import BadRows
from dumbo.data.lazy_rows import LazySource, iterate_records
from dumbo.data.source_encoder import SourceEncoder
from dumbo.data.sources import Source
from dumbo.errors import DataError
from dumbo.launch import Launch
from tests import builders
from tests.run.whole_runs import SHIPPED


class Counting(SourceEncoder):
    """Notes how many records each batch has."""

    def encode(self, records):
        self.batches = [*getattr(self, "batches", []), len(records)]
        return super().encode(records)


@pytest.fixture
def lazy(tmp_path, model_folder):
    """A source of texts."""

    def make(texts, stops_early=True):
        rows = builders.write_rows(tmp_path / "rows.jsonl", [{"text": text} for text in texts])
        entry = {
            "datasets.0.data_format": "completion",
            "datasets.0.train_format": "completion",
            "plugins": [*SHIPPED, "text_formatter"],
        }
        file = builders.write_config(tmp_path, model_folder, rows, entry)
        configured = configure(file, [], Launch())
        source = Source(configured.config.datasets[0], 0, BadRows(stops_early))
        encoder = Counting(source, configured.plugins, builders.build_tokenizer())
        return LazySource(source, configured.plugins, encoder), encoder, configured.plugins

    return make


def test_what_is_skipped_is_not_encoded(lazy):
    source, encoder, _ = lazy([f"text {number}" for number in range(700)])
    whole = list(source.examples())
    assert encoder.batches == [256, 256, 188]
    encoder.batches = []
    rest = list(source.examples(600))
    assert encoder.batches == [100]
    assert [e.input_ids for e in rest] == [e.input_ids for e in whole[600:]]
    assert list(source.examples(700)) == []


def test_few_rows_are_read_for_the_first(lazy):
    source, encoder, _ = lazy([f"text {number}" for number in range(700)])
    rows = source.examples()
    next(rows)
    assert encoder.batches == [256] and gc.isenabled()
    rows.close()


def test_a_batch_of_long_texts_ends_earlier(lazy):
    source, encoder, _ = lazy(["word " * 100_000] * 6)
    assert len(list(source.examples())) == 6
    assert encoder.batches == [5, 1]


def test_bad_rows_keep_their_place_or_are_raised_there(lazy):
    texts = ["one", 2, "three", "", "five"]
    source, _, plugins = lazy(texts, stops_early=False)
    assert [example is None for example in source.examples()] == [False, True, False, True, False]
    assert source.source.bad.count == 2
    assert [example is None for example in source.examples(1)] == [True, False, True, False]
    assert len(list(source.examples())) == 5 and source.source.bad.count == 2, "they are counted once"
    assert [problem.place.line for problem in source.source.bad.problems] == [2, 4]
    assert [record.text for record in iterate_records(source.source, plugins)] == ["one", "three", "five"]
    source, _, plugins = lazy(texts)
    rows = source.examples()
    assert next(rows) is not None
    with pytest.raises(DataError, match=r"rows.jsonl:2: 'text' is the number 2"):
        next(rows)
    with pytest.raises(DataError, match=r"rows.jsonl:2: "):
        list(iterate_records(source.source, plugins))
