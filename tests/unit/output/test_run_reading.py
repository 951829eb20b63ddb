"""What a run left is read back, whatever state it is in."""

import json
import math

import numpy as np
import pytest

from dumbo.output.run_reading import read_run
from dumbo.run_folder import is_run
from tests.unit.output.fake_runs import write_fake_run


def write_metrics(folder, text):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    return read_run(folder).metrics


def test_a_whole_run_is_read(tmp_path):
    run = read_run(write_fake_run(tmp_path / "r"))
    assert run.name == "r" and run.outcome == "finished" and run.last_step == 900
    assert len(run.metrics["train/loss"].steps) == 900
    assert run.config["trainer"]["arguments"]["batch_size"] == 32
    assert run.model == tmp_path / "r" / "model"


def test_an_empty_folder_is_a_run_without_anything(tmp_path):
    run = read_run(tmp_path)
    assert not is_run(tmp_path)
    assert (run.metrics, run.samples, run.summary, run.config, run.last_step) == ({}, (), {}, {}, 0)
    assert run.model is None


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl", "summary.json", "run.yaml"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_that_is_cut_off_gives_what_stands_before(tmp_path, name, share):
    file = write_fake_run(tmp_path / "r") / name
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    run = read_run(tmp_path / "r")
    if name == "metrics.jsonl":
        assert ("train/loss" in run.metrics) is (share > 0)
    if name == "samples.jsonl":
        assert bool(run.samples) is (share > 0)


def test_lines_that_are_no_records_are_passed_over(tmp_path):
    lines = [
        '{"step": 1, "a": 1.0}',
        "[1]",
        "3",
        "null",
        '{"step": "x", "a": 5}',
        '{"a": 5}',
        "\0\0",
        '{"step": 2, "a": 2}',
    ]
    found = write_metrics(tmp_path / "r", "\n".join(lines))
    assert found["a"].steps.tolist() == [1, 2] and found["a"].values.tolist() == [1, 2]


def test_values_that_are_no_numbers(tmp_path):
    row = '{"step": %d, "a": %s}\n'
    values = ["NaN", "Infinity", "-Infinity", "null", "true", '"text"', "1" + "0" * 400, "7"]
    found = write_metrics(tmp_path / "r", "".join(row % pair for pair in enumerate(values)))["a"]
    assert found.steps.tolist() == [0, 1, 2, 3, 6, 7]
    assert np.isnan(found.values[[0, 3]]).all() and found.values[[1, 4]].tolist() == [math.inf, math.inf]
    assert found.last == 7 and found.best() == (7, 7)


def test_a_step_that_was_logged_again_counts_once(tmp_path):
    steps = [1, 2, 3, 2, 3, 4]
    text = "".join(json.dumps({"step": step, "a": index}) + "\n" for index, step in enumerate(steps))
    found = write_metrics(tmp_path / "r", text)["a"]
    assert found.steps.tolist() == [1, 2, 3, 4] and found.values.tolist() == [0, 3, 4, 5]


def test_secrets_are_left_out(tmp_path):
    signed = "https://host/rows.jsonl?X-Amz-Signature=0a1b&part=2&sig=x%3D"
    note = {"api_key": "abc", "url": "https://me:secret@host/x", "path": signed}
    run = read_run(write_fake_run(tmp_path / "r", note=note))
    assert run.config["model"]["hub_token"] == "<redacted>"
    assert run.summary["note"] == {
        "api_key": "<redacted>",
        "url": "https://me:<redacted>@host/x",
        "path": "https://host/rows.jsonl?X-Amz-Signature=<redacted>&part=2&sig=<redacted>",
    }


def test_a_summary_of_another_shape_is_none(tmp_path):
    (tmp_path / "summary.json").write_text("[1, 2]")
    assert read_run(tmp_path).summary == {}
