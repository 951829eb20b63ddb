"""Whole runs of rows that are packed, weighted, grouped and left out."""

import json
import re

import pytest

from tests import builders
from tests.run.whole_runs import printed_by


@pytest.fixture
def run(tmp_path, model_folder, capsys):
    """Trains on `rows` twice over (two sources), with other changes; returns what was printed, or said against it."""
    rows = builders.write_rows(tmp_path / "rows.jsonl", builders.alpaca_rows(24))
    entry = builders.run_config(model_folder, rows)["datasets"][0]

    def train(code=0, **changes):
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        few = {"trainer.arguments.batch_size": 4, "trainer.arguments.physical_batch_size": 2}
        more = {
            "datasets.1": entry,
            "trainer.arguments.num_train_epochs": 2,
            "trainer.arguments.max_steps": builders.REMOVE,
        }
        folder = {"trainer.output_dir": str(tmp_path / f"out-{len(list(tmp_path.iterdir()))}")}
        file = builders.write_config(tmp_path, model_folder, rows, few | more | folder | changes)
        printed = printed_by(capsys, code, str(file))
        return printed.err if code else printed.out

    return train


def test_rows_are_packed_and_the_steps_known_before_the_first(run):
    said = run(trainer__data={"packing": True, "sequence_length": 256}, trainer__arguments__logging_steps=1)
    words = r"(\d+) steps per epoch, (\d+) in all; [\d,]+ tokens per epoch; 48 rows packed into (\d+) sequences"
    plan = re.search(words, said)
    per_epoch, total, sequences = map(int, plan.groups())
    assert sequences < 48 and per_epoch == -(-sequences // 4) and total == 2 * per_epoch
    assert f"trained {total} steps" in said
    assert len(re.findall(rf"^step \d+/{total}  loss", said, re.M)) == total


@pytest.mark.parametrize(("asked", "taken"), [("auto", "dumbo_packed"), ("eager", "eager")])
def test_rows_are_packed_for_training_and_padded_for_evaluation(run, asked, taken):
    """The first evaluation is of the same model, so that its loss tells whether the rows were kept apart."""
    losses = {}
    for packing in (True, False):
        data = {"packing": packing, "sequence_length": 256, "val_set_size": 6}
        said = run(
            trainer__data=data,
            trainer__arguments__eval_strategy="epoch",
            trainer__arguments__eval_on_start=True,
            model__attention=asked,
        )
        losses[packing] = re.search(r"step 0.*eval/loss ([\d.]+)", said).group(1)
        assert (f"attention {taken}" in said) == (packing or asked == taken), said
    assert losses[True] == losses[False]


def test_any_split_of_packed_steps_into_passes_has_the_same_losses(run, tmp_path):
    losses = {}
    for size in (1, 2, 4):
        folder = tmp_path / f"by-{size}"
        run(
            trainer__output_dir=str(folder),
            trainer__data={"packing": True, "sequence_length": 256},
            trainer__arguments__physical_batch_size=size,
            trainer__arguments__logging_steps=1,
        )
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        losses[size] = [line["train/loss"] for line in lines if "train/loss" in line]
    assert len(losses[1]) > 4
    assert losses[2] == pytest.approx(losses[1], rel=1e-5) and losses[4] == pytest.approx(losses[1], rel=1e-5)


def test_a_model_that_does_not_keep_rows_apart_is_refused(run, tokenizer, tmp_path):
    folder = builders.save_tiny_model(tmp_path / "falcon", tokenizer, config_type="falcon")
    said = run(code=2, trainer__data={"packing": True, "sequence_length": 256}, model__base_model=str(folder))
    assert "trainer.data.packing: a falcon model cannot keep documents apart: its layers do not take" in said
    assert "remove packing" in said


def test_weights_and_their_shares_are_shown(run):
    said = run(datasets__0__weight=0.5, trainer__data={"mix": "rows"})
    header, first, second = [line.split() for line in said.splitlines() if re.match(r"  (source|/)", line)]
    assert header[-4:] == ["rows", "per", "epoch", "share"]
    assert (first[-2], second[-2]) == ("16", "32")
    assert "12 steps per epoch, 24 in all" in said, said


def test_the_same_rows_twice_are_left_out(run):
    said = run(trainer__data={"deduplicate": True})
    assert re.search(r"source.*duplicates", said) and "6 steps per epoch, 12 in all" in said


def test_rows_of_similar_lengths_make_less_padding(run):
    shares = [
        int(re.search(r"per epoch; (\d+)% padding", run(trainer__data={"group_by_length": on})).group(1))
        for on in (False, True)
    ]
    assert shares[1] < shares[0]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"trainer.data": {"packing": True}}, "trainer.data.packing: needs to know how long a packed sequence may be"),
        (
            {"trainer.data": {"packing": True, "sequence_length": 64, "group_by_length": True}},
            "trainer.data.group_by_length: has no effect with packing",
        ),
        ({"datasets.0.weight": 0, "datasets.1.weight": 0}, "all sources have a weight of 0"),
        ({"datasets.0.weight": -1}, "datasets.0.weight: "),
        ({"datasets.0.weight": 1e12}, "datasets.0.weight: is too many passes for one epoch"),
        ({"trainer.data": {"group_by_length": True, "shuffle": False}}, "trainer.data.group_by_length: does not keep"),
        ({"trainer.data": {"cache": "no"}}, "'no' is a text here: write true, false or a folder"),
        ({"datasets.0.held_out": True, "datasets.0.weight": 2}, "weight: has no effect on a source that is held out"),
        ({"datasets.1.held_out": True, "trainer.data": {"mix": "rows"}}, "trainer.data.mix: has no effect here"),
    ],
)
def test_what_makes_no_sense_is_refused(run, changes, expected):
    said = run(code=2, **{key.replace(".", "__"): value for key, value in changes.items()})
    assert expected in said
