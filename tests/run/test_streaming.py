"""Whole runs that stream their rows, and what they say of wrong input."""

import json
import re

import pytest

from tests import builders
from tests.run.whole_runs import SHIPPED, losses_of, metrics_of, printed_by

TEXT = (builders.ROOT / "LICENSE").read_text(encoding="utf-8").split()
COMPLETION = {"data_format": "completion", "train_format": "completion"}
JOINED = {"streaming": True, "sequence_length": 64, "packing": "joined", "shuffle_buffer": 20}


def write_texts(file, count, words=30, bad=()):
    rows = []
    for number in range(count):
        first = number * 17 % (len(TEXT) - words)
        length = 1 + (number * 7) % words
        rows.append({"text": 3 if number in bad else " ".join(TEXT[first : first + length])})
    return builders.write_rows(file, rows)


@pytest.fixture
def run(tmp_path, model_folder, capsys):
    """Trains on documents with changes; returns what was printed, or said against it."""
    write_texts(tmp_path / "a.jsonl", 40)
    entry = {"type": "huggingface_polars", "path": str(tmp_path / "a.jsonl"), **COMPLETION}

    def train(code=0, verb="train", **changes):
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        base = {
            "datasets.0": entry,
            "plugins": [*SHIPPED, "text_formatter"],
            "trainer.data": JOINED,
            "trainer.arguments.max_steps": 5,
            "trainer.output_dir": str(tmp_path / f"out-{len(list(tmp_path.iterdir()))}"),
        }
        file = builders.write_config(tmp_path, model_folder, tmp_path / "a.jsonl", base | dotted)
        printed = printed_by(capsys, code, verb, str(file))
        train.said, train.folder = printed.out, tmp_path / (base | dotted)["trainer.output_dir"]
        return printed.err if code else printed.out

    train.entry = entry
    return train


def test_documents_are_joined_while_training_goes_on(run):
    said = run()
    assert "5 steps of a stream; 20 rows at a time, joined to sequences of 64 tokens" in said
    assert len(re.findall(r"^step \d/5  loss", said, re.M)) == 5
    [source] = json.loads((run.folder / "summary.json").read_text())["data"]
    assert source["tokens"] == 5 * 4 * 64
    assert all("train/epoch" not in row for row in metrics_of(run.folder))
    # As many tokens in a forward pass of two sequences as they have.
    assert [row["perf/tokens_per_second"] > 0 for row in metrics_of(run.folder, timing=True)] == [True] * 5


def test_another_split_into_passes_trains_the_same(run):
    once = losses_of((run(), run.folder)[1])
    again = losses_of((run(trainer__arguments__physical_batch_size=4), run.folder)[1])
    other = losses_of((run(trainer__seed=8), run.folder)[1])
    assert again == pytest.approx(once, rel=1e-4) and other != pytest.approx(once, rel=1e-4)


def test_a_lone_source_begins_anew_and_says_so_once(run):
    said = run(trainer__arguments__max_steps=20)
    [source] = json.loads((run.folder / "summary.json").read_text())["data"]
    assert source["passes"] == -(-source["rows"] // 40) > 1
    assert len(re.findall(r"a\.jsonl was read to its end \(40 rows, [\d,]+ tokens\), and begins anew", said)) == 1


def test_sources_are_mixed_by_tokens_and_one_is_held_out(run, tmp_path):
    write_texts(tmp_path / "b.jsonl", 25, words=90)
    write_texts(tmp_path / "c.jsonl", 6)
    said = run(
        datasets__0={**run.entry, "weight": 0.75},
        datasets__1={**run.entry, "path": str(tmp_path / "b.jsonl"), "weight": 0.25},
        datasets__2={**run.entry, "path": str(tmp_path / "c.jsonl"), "held_out": True},
        trainer__data={**JOINED, "mix": "tokens"},
        trainer__arguments__max_steps=40,
    )
    first, second, third = json.loads((run.folder / "summary.json").read_text())["data"]
    assert first["share"] == pytest.approx(0.75, abs=0.05) and second["share"] == pytest.approx(0.25, abs=0.05)
    assert third["held_out"] >= 6 and len(losses_of(run.folder, "eval/loss")) == 1
    assert "trained on so far:" in said


@pytest.mark.parametrize("packing", [True, False])
def test_conversations_are_packed_or_padded(run, tmp_path, packing):
    rows = builders.write_rows(tmp_path / "chat.jsonl", builders.alpaca_rows(24))
    said = run(
        datasets__0=builders.run_config(tmp_path, rows)["datasets"][0],
        trainer__data={"streaming": True, "sequence_length": 256, "packing": packing, "shuffle_buffer": 24},
        trainer__arguments__max_steps=6,
    )
    assert f"{'packed into' if packing else 'as'} sequences of up to 256 tokens" in said
    [source] = json.loads((run.folder / "summary.json").read_text())["data"]
    assert source["rows"] == 24 or packing, "six steps of four rows"


def test_a_bad_row_far_into_the_stream_ends_it_and_keeps_the_weights(run, tmp_path):
    write_texts(tmp_path / "a.jsonl", 600, bad=[580])
    said = run(code=2, trainer__arguments__max_steps=500, trainer__arguments__logging_steps=10)
    assert re.match(r".*a\.jsonl:581: .*text", said) and len(said.splitlines()) <= 3
    [step] = re.findall(r"stopped after step (\d+) of 500; the model as it was is in", run.said)
    folder = run.folder / "checkpoints" / f"stopped-{int(step):06}"
    assert int(step) > 5 and (folder / "model.safetensors").exists() and not (run.folder / "model").exists()


def test_bad_rows_are_dropped_and_counted(run, tmp_path):
    write_texts(tmp_path / "a.jsonl", 40, bad=[3, 30])
    said = run(trainer__data={**JOINED, "on_bad_row": "drop"}, trainer__arguments__max_steps=20)
    [source] = json.loads((run.folder / "summary.json").read_text())["data"]
    assert source["passes"] > 1 and source["bad"] == 2
    assert re.search(r"^dropped 2 bad rows; the first: .*a\.jsonl:4: 'text' is the number 3", said, re.M)


def test_rows_of_the_next_pass_that_are_read_ahead_are_not_told_of(run):
    said = run(trainer__arguments__max_steps=2)
    [source] = json.loads((run.folder / "summary.json").read_text())["data"]
    assert source["passes"] == 1 and "begins anew" not in said


def test_the_first_rows_are_looked_at_before_anything_is_trained(run, tmp_path):
    write_texts(tmp_path / "a.jsonl", 200, bad=[150])
    said = run(code=2)
    assert "a.jsonl:151: " in said and not run.folder.exists()


def test_a_long_row_is_an_error_unless_it_is_said_what_to_do(run, tmp_path):
    builders.write_rows(tmp_path / "a.jsonl", [{"text": " ".join(TEXT[:400])}])
    packed = {**JOINED, "packing": True}
    assert "longer than 64 tokens" in run(code=2, trainer__data=packed)
    run(trainer__data={**packed, "too_long": "split"}, trainer__arguments__max_steps=2)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"trainer.arguments.max_steps": builders.REMOVE}, "trainer.data.streaming: needs to know when to stop"),
        (
            {"trainer.data": {"streaming": True}},
            "trainer.data.streaming: needs to know how long a sequence may be",
        ),
        ({"trainer.data": {**JOINED, "val_set_size": 3}}, "val_set_size: cannot be drawn from a stream"),
        ({"trainer.data": {**JOINED, "deduplicate": True}}, "deduplicate: is not possible with streaming"),
        (
            {"trainer.data": {"streaming": True, "sequence_length": 64, "group_by_length": True}},
            "group_by_length: is not possible with streaming",
        ),
        ({"trainer.data": {**JOINED, "too_long": "drop"}}, "too_long: has no effect with packing: joined"),
        ({"trainer.data": {**JOINED, "streaming": False}}, "shuffle_buffer: has no effect without streaming"),
        ({"trainer.data": {**JOINED, "packing": "joint"}}, "trainer.data.packing: "),
        ({"trainer.arguments.dataloader_num_workers": 2}, "dataloader_num_workers: has no effect with streaming"),
        ({"datasets.0.weight": 2.0}, "datasets.0.weight: has no effect with streaming"),
        ({"datasets.0.path": "nowhere.jsonl"}, "datasets.0.path: "),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_read(run, changes, expected):
    said = run(code=2, verb="check", **{key.replace(".", "__"): value for key, value in changes.items()})
    assert expected in said


def test_several_sources_need_what_their_weights_count(run):
    said = run(code=2, verb="check", datasets__1=run.entry)
    assert "needs to know what the sources' weights count" in said and "mix: tokens" in said


def test_an_empty_source_is_an_error(run, tmp_path):
    (tmp_path / "a.jsonl").write_text("")
    assert "a.jsonl" in run(code=2) and not run.folder.exists()


def test_a_plugin_that_changes_the_whole_set_is_refused(run, tmp_path):
    (tmp_path / "own.py").write_text(
        "from dumbo.plugin_loader import BasePlugin\n"
        "class HalfPlugin(BasePlugin):\n"
        "    def transform_dataset(self, dataset, config):\n"
        "        return dataset.select(range(len(dataset) // 2))\n"
    )
    said = run(code=2, plugins=[*SHIPPED, "text_formatter", "./own.py:HalfPlugin"])
    assert "trainer.data.streaming: the plugin 'half' changes the training set as a whole" in said


def test_joined_without_streaming(run):
    said = run(
        trainer__data={"sequence_length": 64, "packing": "joined"}, trainer__arguments__max_steps=builders.REMOVE
    )
    found = re.search(r"40 rows joined to (\d+) sequences; (\d+) of them begin within a row", said)
    [source] = json.loads((run.folder / "summary.json").read_text())["data"]
    assert int(found[1]) == -(-source["tokens"] // 64) and 0 < int(found[2]) < int(found[1])
