"""Rows and sources that count more or less in the loss: whole runs, by hand, and what is refused."""

import pytest
import torch

from tests import builders
from tests.run.whole_runs import SHIPPED, losses_of, printed_by, weights_of, write_and_run

FIELD = {"datasets.0.loss_weight_field": "worth"}
ONE_STEP = {
    "trainer.arguments.optim": "sgd",
    "trainer.arguments.learning_rate": 0.3,
    "trainer.arguments.max_steps": 1,
    "trainer.arguments.batch_size": 64,
    "trainer.arguments.physical_batch_size": 8,
    "trainer.data": {"cache": False},
}
"""All rows at once, so that it does not matter how many there are."""
CUT = {"plugins": [*SHIPPED, "cut_cross_entropy"], "model.cut_cross_entropy.tile_tokens": 16}


def rows_with(tmp_path, worth, name="rows.jsonl"):
    """Alpaca's rows with a column `worth`."""
    rows = builders.alpaca_rows(len(worth))
    return builders.write_rows(
        tmp_path / name, [row | {"worth": value} for row, value in zip(rows, worth, strict=True)]
    )


def assert_same(one, other, tolerance=1e-5):
    assert losses_of(other) == pytest.approx(losses_of(one), rel=tolerance)
    before, after = weights_of(one / "model"), weights_of(other / "model")
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=tolerance, msg=name)


def test_a_row_of_weight_2_is_there_twice_and_one_of_0_not_at_all(tmp_path, model_folder):
    worth = [1, 2, 0, 1, 0.5, 1.5, 3, 0]
    weighted = rows_with(tmp_path, worth)
    rows = builders.alpaca_rows(len(worth))
    twice = [row for row, value in zip(rows, worth, strict=True) for _ in range(int(2 * value))]
    repeated = builders.write_rows(tmp_path / "repeated.jsonl", twice)
    expected = write_and_run(tmp_path / "repeated", model_folder, repeated, ONE_STEP)
    for name, changes in {
        "held": {},
        "left": CUT,
        "accumulated": {"trainer.arguments.physical_batch_size": 2},
        "packed": {
            "trainer.data": {"cache": False, "packing": True, "sequence_length": 200},
            "trainer.arguments.physical_batch_size": 1,
        },
    }.items():
        found = write_and_run(tmp_path / name, model_folder, weighted, ONE_STEP | FIELD | changes)
        assert_same(expected, found)


def test_weights_that_are_all_alike_change_nothing(tmp_path, model_folder):
    changes = {"trainer.arguments.max_steps": 3, "trainer.data": {"cache": False, "val_set_size": 3}}
    files = {value: rows_with(tmp_path, [value] * 12, f"{value}.jsonl") for value in (1, 0.25)}
    plain = write_and_run(tmp_path / "plain", model_folder, files[1], changes)
    ones = write_and_run(tmp_path / "ones", model_folder, files[1], changes | FIELD)
    quarters = write_and_run(tmp_path / "quarters", model_folder, files[0.25], changes | FIELD)
    assert losses_of(ones) == losses_of(plain), "to the bit"
    for path in ("train/loss", "train/grad_norm", "eval/loss"):
        assert losses_of(quarters, path) == pytest.approx(losses_of(plain, path), rel=1e-5), path


def test_a_source_counts_as_its_rows_would(tmp_path, model_folder):
    """The weight of a source times those of its rows; and the cache keeps the rows' alone."""
    first, second = rows_with(tmp_path, [1, 2, 0.5, 1], "first.jsonl"), rows_with(tmp_path, [1] * 5, "second.jsonl")
    cached = {**ONE_STEP, "trainer.data": {"cache": str(tmp_path / "cache")}}
    entry = {"type": "huggingface_polars", "data_format": "alpaca", "train_format": "chat_template"}
    fields = {"loss_weight_field": "worth"}
    two = {"datasets": [{"path": str(first), **entry, **fields}, {"path": str(second), **entry}]}
    found = []
    for number, weights in enumerate([(1, 3), (0.5, 1.5)]):
        for place, weight in enumerate(weights):
            two["datasets"][place] = two["datasets"][place] | {"loss_weight": weight}
        found.append(write_and_run(tmp_path / f"run-{number}", model_folder, first, cached | two))
    worth = [1, 2, 0.5, 1, *[3] * 5]
    rows = [*builders.alpaca_rows(4), *builders.alpaca_rows(5)]
    joined = [row | {"worth": value} for row, value in zip(rows, worth, strict=True)]
    one = {"datasets": [{"path": str(builders.write_rows(tmp_path / "all.jsonl", joined)), **entry, **fields}]}
    expected = write_and_run(tmp_path / "expected", model_folder, first, cached | one)
    for run in found:
        assert_same(expected, run)
    stored = [folder for folder in (tmp_path / "cache").rglob("rows.json")]
    assert len(stored) == 3, "another weight of a source makes no token again"


def test_evaluation_goes_by_the_same_weights(tmp_path, model_folder):
    worth = [2, 1, 0, 0.5]
    entry = {"type": "huggingface_polars", "data_format": "alpaca", "train_format": "chat_template"}
    train = rows_with(tmp_path, [1] * 6, "train.jsonl")
    measured = {}
    for name, rows, more in (
        ("weighted", rows_with(tmp_path, worth, "held.jsonl"), {"loss_weight_field": "worth"}),
        (
            "repeated",
            builders.write_rows(
                tmp_path / "repeated.jsonl",
                [r for r, w in zip(builders.alpaca_rows(4), worth, strict=True) for _ in range(int(2 * w))],
            ),
            {},
        ),
    ):
        held = {"path": str(rows), "held_out": True, **entry, **more}
        changes = ONE_STEP | {
            "datasets": [{"path": str(train), **entry}, held],
            "trainer.arguments.eval_on_start": True,
            "trainer.arguments.label_smoothing_factor": 0.1,
        }
        measured[name] = losses_of(write_and_run(tmp_path / name, model_folder, train, changes), "eval/loss")
    assert measured["weighted"] == pytest.approx(measured["repeated"], rel=1e-5)


@pytest.mark.parametrize("value", ["many", -1, True, None, 1e9, [1]])
def test_a_weight_that_is_none_is_an_error_of_its_row(tmp_path, model_folder, capsys, value):
    rows = rows_with(tmp_path, [1, 1, value, 1])
    file = builders.write_config(tmp_path, model_folder, rows, FIELD)
    said = printed_by(capsys, 2, str(file)).err
    assert "rows.jsonl:3: 'worth' is " in said
    assert "a row's weight in the loss is a number from 0 to 1,000,000" in said


OWN_LOSS = """
from dumbo.plugin_loader import LossPlugin

class OwnPlugin(LossPlugin):
    def build_loss(self, config, tokenizer):
        return lambda model, batch, num_items: model(input_ids=batch["input_ids"]).logits.sum()
"""


def test_a_loss_that_knows_no_weights_is_refused(tmp_path, model_folder, capsys):
    (tmp_path / "own.py").write_text(OWN_LOSS)
    rows = rows_with(tmp_path, [1, 2, 1, 1])
    changes = FIELD | {"plugins": [*SHIPPED, "./own.py:OwnPlugin"]}
    said = printed_by(capsys, 2, str(builders.write_config(tmp_path, model_folder, rows, changes))).err
    assert "'weights' beside its tokens, and the loss of the plugin 'own' does not read it" in said


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"datasets.0.loss_weight": 2}, "datasets.0.loss_weight: has no effect: no other source is trained on"),
        ({"datasets.0.loss_weight": 0}, "datasets.0.loss_weight: "),
        ({"datasets.0.loss_weigth_field": "worth"}, "did you mean 'loss_weight_field'?"),
        (
            {**FIELD, "trainer.data": {"streaming": True, "sequence_length": 200}},
            "datasets.0.loss_weight_field: is not possible with streaming",
        ),
    ],
)
def test_what_would_have_no_effect_is_refused(tmp_path, model_folder, capsys, changes, line):
    file = builders.write_config(tmp_path, model_folder, rows_with(tmp_path, [1, 2]), changes)
    assert line in printed_by(capsys, 2, "check", str(file)).err


def test_a_column_that_is_not_there_is_named(tmp_path, model_folder, capsys):
    rows = rows_with(tmp_path, [1, 2])
    file = builders.write_config(tmp_path, model_folder, rows, {"datasets.0.loss_weight_field": "wort"})
    said = printed_by(capsys, 2, str(file)).err
    assert "rows.jsonl:1: no column 'wort'\n    did you mean 'worth'?" in said
