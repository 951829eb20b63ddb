"""Rows to data sets: what becomes of bad and too long rows, which rows are held out, and the table that tells."""

import io
import json
import re

import pytest
import yaml

from dumbo.configure import configure
from dumbo.console import Console
from dumbo.data.build import build_datasets
from dumbo.data.lengths import sequence_length
from dumbo.data.preparing import FromReaders, prepare_sources
from dumbo.data.sources import read_sources
from dumbo.errors import ConfigError, DataError, RunError
from dumbo.launch import Launch
from tests import builders

PLUGIN = '''
from dumbo.config.schema import FormatOptions
from dumbo.config.section import Section
from dumbo.data.records import Example, Row, Origin, Text
from dumbo.plugin_loader import DataFormatPlugin, ReaderPlugin, TrainFormatPlugin, DatasetPlugin

class Numbers(Section):
    rows: list
    """One text per row: its token ids, with `*` behind those that are trained."""

class Plain(FormatOptions):
    pass

class NumbersPlugin(ReaderPlugin, DataFormatPlugin, TrainFormatPlugin):
    readers = {"numbers": Numbers}
    data_formats = {"plain": Plain}
    train_formats = {"plain": Plain}

    def read(self, options):
        for number, text in enumerate(options.rows, start=1):
            yield Row({"text": text}, Origin("numbers", number))

    def build_data_format(self, options):
        def convert(row):
            if not row.values["text"]:
                raise row.origin.error("there is nothing in it")
            return Text(row.values["text"], row.origin)
        return convert

    def build_train_format(self, options, tokenizer):
        def encode(record):
            words = record.text.split()
            if "x" in words:
                raise record.origin.error("x is no number")
            ids = [int(word.rstrip("*")) for word in words]
            labels = [token if word.endswith("*") else -100 for token, word in zip(ids, words)]
            return Example(ids, labels, record.origin)
        return encode

class ShortenPlugin(DatasetPlugin):
    def transform_dataset(self, dataset, config):
        return dataset.select(range(len(dataset) - 1))
'''
TRAINED = "1 2* 3* 4*"


@pytest.fixture
def build(tmp_path, model_folder, tokenizer):
    """A function from rows and options of `trainer.data` to the data sets and what was printed."""
    (tmp_path / "numbers.py").write_text(PLUGIN)
    model = builders.build_tiny_model(64, max_position_embeddings=16)

    def build_from(*sources, plugins=(), seed=7, held_out=(), **data):
        config = {
            "model": {"base_model": str(model_folder)},
            "datasets": [
                {"type": "numbers", "rows": list(rows), "data_format": "plain", "train_format": "plain"}
                | ({"held_out": True} if number in held_out else {})
                for number, rows in enumerate(sources)
            ],
            "trainer": {"data": data, "seed": seed},
            "plugins": ["transformers", "transformers_trainer", "./numbers.py:NumbersPlugin", *plugins],
        }
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(config))
        configured = configure(file, (), Launch())
        output = io.StringIO()
        read = read_sources(configured.config, configured.plugins)
        console = Console(stream=output)
        encoded = prepare_sources(FromReaders(None), read, configured.plugins, tokenizer, 64, console)
        limit = sequence_length(configured.config, model)
        datasets = build_datasets(read, encoded, configured.config, configured.plugins, limit, 0, console)
        return datasets, output.getvalue()

    return build_from


def texts(dataset):
    rows = [dataset[index] for index in range(len(dataset))]
    return [
        " ".join(
            f"{token}*" if label != -100 else f"{token}"
            for token, label in zip(row["input_ids"].tolist(), row["labels"].tolist(), strict=True)
        )
        for row in rows
    ]


def table_of(printed):
    header, *lines = [re.split(r"\s{2,}", line.strip()) for line in printed.splitlines() if line.startswith("  ")]
    return [dict(zip(header, line, strict=True)) for line in lines]


LONG = ["1 2* 3* 4*", "1 2 3 4 5* 6*", "1 2* 3* 4* 5* 6* 7* 8*", "1 2 3 4 5 6 7* 8*"]


def test_rows_over_the_limit_stop_the_run_with_their_count_and_the_ways_out(build):
    with pytest.raises(DataError) as caught:
        build(LONG, sequence_length=4)
    message = str(caught.value)
    assert message.startswith("numbers:2: 3 rows are longer than 4 tokens (the longest has 8)")
    for word in ("too_long", "drop", "truncate", "split", "sequence_length"):
        assert word in message


def test_one_row_over_the_limit_is_told_as_one(build):
    with pytest.raises(DataError, match=r"numbers:2: 1 row is longer than 4 tokens \(the longest has 6\)"):
        build(LONG[:2], sequence_length=4)


@pytest.mark.parametrize(
    ("policy", "expected", "left_out"),
    [
        ("drop", ["1 2* 3* 4*"], 0),
        ("truncate", ["1 2* 3* 4*", "1 2* 3* 4*"], 2),
        ("split", ["1 2* 3* 4*", "5 6*", "1 2* 3* 4*", "5 6* 7* 8*", "5 6 7* 8*"], 2),
    ],
)
def test_rows_over_the_limit_are_treated_as_asked(build, policy, expected, left_out):
    datasets, printed = build(LONG, sequence_length=4, too_long=policy)
    assert texts(datasets.train) == expected
    (row,) = table_of(printed)
    assert row["rows"] == str(len(expected))
    assert row["too long"] == "3"
    assert row.get("emptied", "0") == str(left_out), "pieces of which nothing is trained are left out and counted"


def test_without_a_limit_of_its_own_a_run_has_the_model_s(build):
    longer = " ".join(f"{number}*" for number in range(1, 18))
    with pytest.raises(DataError, match="longer than 16 tokens"):
        build([TRAINED, longer])
    datasets, printed = build([TRAINED, longer], too_long="drop")
    assert len(datasets.train) == 1
    assert "sequences of up to 16 tokens" in printed


def test_the_first_long_row_is_the_first_of_the_source_also_where_rows_are_held_out(build):
    for seed in range(4):
        with pytest.raises(DataError, match="numbers:1: 6 rows are longer"):
            build(["1 2* 3*"] * 6, sequence_length=2, val_set_size=3, seed=seed)


def test_pieces_of_a_long_row_are_never_on_both_sides(build):
    rows = [" ".join(f"{first + i}*" for i in range(5)) for first in range(0, 60, 6)]
    datasets, printed = build(rows, sequence_length=2, too_long="split", val_set_size=4)
    train, evaluation = (
        {int(text.split("*")[0].split()[0]) // 6 for text in texts(side)}
        for side in (datasets.train, datasets.evaluation)
    )
    assert (len(train), len(evaluation)) == (6, 4)
    assert not train & evaluation
    assert table_of(printed)[0]["held out"] == str(len(datasets.evaluation))


def test_a_side_of_which_all_rows_are_too_long_is_an_error(build):
    messages = set()
    for seed in range(8):
        with pytest.raises(RunError) as caught:
            build(["1 2* 3*", "1 2*"], sequence_length=2, too_long="drop", val_set_size=1, seed=seed)
        messages.add(str(caught.value))
    assert messages == {
        "no training rows are left",
        "none of the held out rows is left: all of them were too long",
    }


def test_a_limit_beyond_the_model_s_is_refused(build):
    with pytest.raises(ConfigError, match=r"trainer\.data\.sequence_length: the model takes at most 16 tokens"):
        build([TRAINED], sequence_length=17)


def numbered(count):
    return [f"1 {number}* 3*" for number in range(2, 2 + count)]


@pytest.mark.parametrize(("size", "held_out"), [(3, 3), (0.25, 5), (0.01, 1), (1, 1)])
def test_rows_are_held_out_by_number_or_share(build, size, held_out):
    datasets, _ = build(numbered(20), val_set_size=size)
    train, evaluation = texts(datasets.train), texts(datasets.evaluation)
    assert len(evaluation) == held_out
    assert sorted(train + evaluation) == sorted(numbered(20)), "every row is in one of the two"


def test_which_rows_are_held_out_depends_on_the_seed(build):
    first, again, other = (texts(build(numbered(30), val_set_size=6, seed=seed)[0].evaluation) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_nothing_is_held_out_unless_asked(build):
    assert build([TRAINED])[0].evaluation is None


@pytest.mark.parametrize("size", [4, 5])
def test_some_rows_must_be_left_to_train_on(build, size):
    with pytest.raises(ConfigError, match=r"trainer\.data\.val_set_size: there are only 4 rows"):
        build(numbered(4), val_set_size=size)


def test_a_whole_source_is_held_out(build):
    first, second, third = numbered(5), [f"5 {n}* 3*" for n in range(9, 12)], [f"6 {n}* 3*" for n in range(9, 13)]
    datasets, printed = build(first, second, third, held_out=(1,))
    assert texts(datasets.train) == first + third
    assert texts(datasets.evaluation) == second
    assert [row.get("held out") for row in table_of(printed)] == ["0", "3", "0"]


def test_rows_of_other_sources_are_held_out_beside_it(build):
    first, second = numbered(8), [f"5 {n}* 3*" for n in range(9, 12)]
    datasets, _ = build(first, second, held_out=(1,), val_set_size=2)
    evaluation = texts(datasets.evaluation)
    assert set(second) < set(evaluation) and len(evaluation) == 5
    assert sorted(texts(datasets.train) + evaluation) == sorted(first + second)
    with pytest.raises(ConfigError, match="there are only 8 rows"):
        build(first, second, held_out=(1,), val_set_size=8)


def test_something_must_be_left_to_train_on(build):
    with pytest.raises(ConfigError, match="all sources are held out: there is nothing to train on"):
        build(numbered(3), numbered(3), held_out=(0, 1))


BAD = ["", TRAINED, "1 x* 3", "1 2* 3*"]


def test_a_bad_row_stops_the_run_and_is_named(build):
    with pytest.raises(DataError, match="numbers:1: there is nothing in it"):
        build(BAD)
    with pytest.raises(DataError, match="numbers:2: x is no number"):
        build(BAD[1:2] + ["1 x"])


def test_bad_rows_are_dropped_and_counted_if_asked(build):
    datasets, printed = build(BAD[:2] + ["1 x"] + BAD[3:], on_bad_row="drop")
    assert texts(datasets.train) == [TRAINED, "1 2* 3*"]
    assert table_of(printed)[0]["bad"] == "2"
    assert "dropped 2 bad rows; the first: numbers:1: there is nothing in it" in printed


def test_any_number_of_bad_rows_is_dropped_if_asked(build):
    datasets, printed = build(["", "1 x", TRAINED] * 1100, on_bad_row="drop")
    assert len(datasets.train) == 1100
    assert table_of(printed)[0]["bad"] == "2,200"


def test_reading_stops_when_there_are_too_many_bad_rows_to_look_at(build):
    with pytest.raises(DataError) as caught:
        build([""] * 3000)
    assert len(caught.value.problems) == 1000


@pytest.mark.parametrize("rows", [[""], ["1 x"]])
def test_a_source_of_which_nothing_is_left_is_an_error_even_so(build, rows):
    with pytest.raises(DataError, match="numbers:1: "):
        build(rows, on_bad_row="drop")


def test_a_source_without_rows_is_an_error(build):
    with pytest.raises(ConfigError, match=r"datasets\.1: has no rows"):
        build([TRAINED], [])


def test_sources_are_joined_in_their_order_with_a_line_each(build):
    datasets, printed = build([TRAINED, "5 6*"], ["7 8 9*"])
    assert texts(datasets.train) == [TRAINED, "5 6*", "7 8 9*"]
    first, second = table_of(printed)
    assert first == {"source": "datasets.0", "tokens": "6", "trained": "67%", "rows": "2"}
    assert second == {"source": "datasets.1", "tokens": "3", "trained": "33%", "rows": "1"}


def test_a_dataset_plugin_changes_the_training_rows_and_not_those_held_out(build):
    plain, _ = build(numbered(8), val_set_size=2)
    changed, _ = build(numbered(8), val_set_size=2, plugins=["./numbers.py:ShortenPlugin"])
    assert texts(changed.train) == texts(plain.train)[:-1]
    assert texts(changed.evaluation) == texts(plain.evaluation)


def test_a_plugin_that_leaves_no_row_is_an_error(build):
    with pytest.raises(RunError, match="no training rows are left"):
        build([TRAINED], plugins=["./numbers.py:ShortenPlugin"])


def test_dropping_every_row_is_an_error(build):
    with pytest.raises(RunError, match="no training rows are left"):
        build(LONG[1:], sequence_length=4, too_long="drop")


def test_only_the_first_rows_are_read_if_asked(tmp_path, model_folder):
    rows = builders.write_rows(tmp_path / "rows.jsonl", builders.alpaca_rows(5))
    with rows.open("a") as file:
        file.write(json.dumps({"instruction": 3}) + "\n")
    configured = configure(builders.write_config(tmp_path, model_folder, rows), (), Launch())
    (source,) = read_sources(configured.config, configured.plugins, limit=5)
    assert [record.origin.row for record in source.records] == [1, 2, 3, 4, 5]
    with pytest.raises(DataError, match="rows.jsonl:6"):
        read_sources(configured.config, configured.plugins)
