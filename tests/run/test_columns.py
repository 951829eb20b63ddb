"""Whole runs whose rows have a column beside their tokens: cached, packed, held out, refused where none reads it."""

import json

import pytest

from tests import builders
from tests.run.whole_runs import SHIPPED, printed_by, run_here

PLUGIN = """
import json
from pathlib import Path

import numpy as np

from dumbo.config.schema import FormatOptions
from dumbo.data.columns import Column
from dumbo.data.records import Example, Text
from dumbo.plugin_loader import DataFormatPlugin, LossPlugin, TrainFormatPlugin


class Options(FormatOptions):
    '''Texts.'''


class DoubledPlugin(DataFormatPlugin, TrainFormatPlugin):
    cache_version = "1"
    data_formats = {"answers": Options}
    train_formats = {"doubled": Options}

    def build_data_format(self, options):
        return lambda row: Text(row.values["output"], row.origin)

    def build_train_format(self, options, tokenizer):
        def to_example(record):
            ids = tokenizer.encode(record.text)
            doubled = {"doubled": Column(2 * np.array(ids, np.int64), 7)} if "5" not in record.text else {}
            return Example(ids, ids, record.origin, columns=doubled)

        return to_example


class ReadingPlugin(LossPlugin):
    columns = frozenset({"doubled"})

    def build_loss(self, config, tokenizer):
        from dumbo.losses.token import next_token_cross_entropy

        file = Path(__file__).parent / "batches.jsonl"

        def loss(model, batch, num_items):
            inputs = {name: value for name, value in batch.items() if name not in ("labels", "doubled")}
            with file.open("a") as lines:
                print(json.dumps([batch["input_ids"].tolist(), batch["doubled"].tolist()]), file=lines)
            return next_token_cross_entropy(model(**inputs).logits, batch["labels"]) / num_items

        return loss
"""


@pytest.fixture
def parts(model_folder, tmp_path):
    (tmp_path / "doubled.py").write_text(PLUGIN)
    return model_folder, builders.write_rows(tmp_path / "rows.jsonl", builders.alpaca_rows(24)), tmp_path


CHANGES = {
    "datasets.0.data_format": "answers",
    "datasets.0.train_format": "doubled",
}
HELD_OUT = {
    "trainer.data.val_set_size": 4,
    "trainer.arguments.eval_strategy": "steps",
    "trainer.arguments.eval_steps": 2,
}


def config_of(parts, *, with_loss=True, **more):
    model, rows, folder = parts
    plugins = [*SHIPPED, "./doubled.py:DoubledPlugin", *(["./doubled.py:ReadingPlugin"] if with_loss else [])]
    return builders.write_config(folder, model, rows, CHANGES | {"plugins": plugins} | more)


@pytest.mark.parametrize("packing", [False, True, "joined"])
def test_columns_reach_the_loss_beside_their_tokens_from_rows_and_from_the_cache(parts, packing, capsys):
    data = {"trainer.data.packing": packing, "trainer.data.sequence_length": 24}
    file = config_of(parts, **HELD_OUT, **data)
    batches = parts[2] / "batches.jsonl"
    run_here(file)
    first = batches.read_text()
    batches.unlink()
    run_here(file, f"trainer.output_dir={parts[2] / 'again'}")
    assert "24 rows from the cache" in capsys.readouterr().out
    assert batches.read_text() == first
    with_defaults = 0
    for line in first.splitlines():
        for ids, doubled in zip(*json.loads(line), strict=True):
            pairs = list(zip(ids, doubled, strict=True))
            assert all(value in (2 * token, 7) for token, value in pairs)
            with_defaults += sum(value == 7 for _, value in pairs)
    assert 0 < with_defaults < first.count(",")


def test_a_column_that_no_loss_reads_is_an_error(parts, capsys):
    said = printed_by(capsys, 2, "train", str(config_of(parts, with_loss=False))).err
    assert "the training set has a column 'doubled' beside its tokens, and the loss does not read it" in said


def test_a_stream_refuses_columns(parts, capsys):
    data = {"trainer.data.streaming": True, "trainer.data.sequence_length": 24}
    said = printed_by(capsys, 2, "train", str(config_of(parts, **data))).err
    assert "run.yaml" in said and "column 'doubled' beside their tokens" in said, said
