"""How a run stands is read from its folder alone, whatever is in it."""

import json
import os
from pathlib import Path

import pytest

from dumbo.run_lock import LOCK_NAME, hold_run
from dumbo.run_state import find_runs, newest_first, read_state
from tests.unit.output.fake_runs import write_fake_run

ROWS = [
    {"step": 1, "train/loss": 3.0},
    {"step": 1, "eval/loss": 2.5},
    {"step": 2, "train/loss": 2.0, "train/grad_norm": 1.0},
]


@pytest.mark.parametrize(
    ("outcome", "state", "words"),
    [
        ("finished", "finished", "finished"),
        ("interrupted", "stopped", "stopped at step 2"),
        ("failed", "failed", "failed"),
        ("running", "killed", "killed"),
        ("abducted", "unknown", "unknown"),
        (["finished"], "unknown", "unknown"),
    ],
)
def test_what_ended_has_said_how_and_what_has_not_was_killed(tmp_path, outcome, state, words):
    folder = write_fake_run(tmp_path, rows=ROWS, outcome=outcome, steps=2, total_steps=9, error="no memory")
    found = read_state(folder)
    assert (found.state, found.words) == (state, words)
    assert found.error == ("no memory" if outcome == "failed" else None)
    assert (found.steps, found.total_steps, found.loss, found.eval_loss) == (2, 9, 2.0, 2.5)
    assert (found.started, found.seconds, found.owner) == ("2026-11-21T05:30:00Z", 171.2, None)


def test_a_run_that_is_held_runs_whatever_its_summary_says(tmp_path):
    folder = write_fake_run(tmp_path, rows=ROWS, outcome="failed", error="an earlier one")
    with hold_run(folder):
        found = read_state(folder)
        assert (found.state, found.words, found.owner.pid, found.error) == ("running", "running", os.getpid(), None)
    assert read_state(folder).state == "failed"


def test_a_run_on_another_machine_says_where(tmp_path):
    folder = write_fake_run(tmp_path, outcome="running")
    owner = {"pid": 1, "host": "gpu7", "machine": "x", "user": "anna", "since": "2026-11-21T05:30:00Z", "config": ""}
    (folder / LOCK_NAME).write_text(json.dumps(owner))
    assert read_state(folder).words == "running on gpu7"
    (folder / LOCK_NAME).write_text("?")
    found = read_state(folder)
    assert (found.words, found.owner) == ("running", None)


def test_the_log_is_ahead_of_the_summary_and_the_summary_knows_what_was_long_ago(tmp_path):
    folder = write_fake_run(tmp_path, outcome="running", steps=1, last={"train/loss": 9.0, "eval/loss": 1.5}, rows=[])
    found = read_state(folder)
    assert (found.steps, found.loss, found.eval_loss) == (1, 9.0, 1.5)
    lines = [json.dumps({"step": step, "train/loss": step / 8, "padding": "x" * 400}) for step in range(1, 1001)]
    (folder / "metrics.jsonl").write_text(
        '{"step": 1, "eval/loss": 7.0}\n' + "\n".join(lines) + '\n{"step": 1001, "tra'
    )
    found = read_state(folder)
    assert (found.steps, found.loss, found.eval_loss) == (1000, 125.0, 1.5)


def test_a_loss_that_is_no_number_is_one(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "train/loss": NaN, "eval/loss": null}\n')
    found = read_state(tmp_path)
    assert found.loss != found.loss
    assert found.eval_loss is None


BROKEN = ["", "{", "[1]", '"x"', "\x00\xff", "[" * 100_000, '{"outcome": "finished"', "null"]


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl"])
@pytest.mark.parametrize("text", BROKEN, ids=range(len(BROKEN)))
def test_broken_files_give_less_and_no_error(tmp_path, name, text):
    folder = write_fake_run(tmp_path / "run", rows=ROWS)
    (folder / name).write_text(text, encoding="latin-1")
    found = read_state(folder)
    assert found.state == ("unknown" if name == "summary.json" else "finished")
    assert found.steps == (2 if name == "summary.json" else 900)
    (folder / name).unlink()
    (folder / name).mkdir()
    read_state(folder)


def test_strange_values_are_no_values(tmp_path):
    strange = {"steps": "many", "total_steps": -3, "seconds": True, "started": "yesterday", "last": [1]}
    found = read_state(write_fake_run(tmp_path, rows=[], outcome="failed", error=None, **strange))
    known = (found.steps, found.total_steps, found.seconds, found.started, found.loss, found.error)
    assert known == (None,) * 6
    huge = {"steps": 10**400, "seconds": float("inf"), "started": 5, "error": {"a": 1}}
    found = read_state(write_fake_run(tmp_path, rows=[{"step": 10**400}], outcome="failed", **huge))
    assert (found.steps, found.seconds, found.started, found.error) == (None, None, None, "{'a': 1}")


def test_secrets_of_an_error_are_left_out(tmp_path):
    folder = write_fake_run(tmp_path, outcome="failed", error="no answer from https://me:planted-word@host/x")
    assert "planted-word" not in read_state(folder).error


def test_checkpoints_and_all_bytes_count(tmp_path):
    folder = write_fake_run(tmp_path, rows=ROWS)
    before = read_state(folder).size
    for name in ("step-000010", "step-000002", "step-000020.partial", "best"):
        (folder / "checkpoints" / name).mkdir(parents=True)
        (folder / "checkpoints" / name / "model.safetensors").write_bytes(b"x" * 1000)
    os.link(folder / "checkpoints/best/model.safetensors", folder / "checkpoints/best/again")
    found = read_state(folder)
    assert found.checkpoints == (2, 10)
    assert found.size == before + 4000


def test_runs_are_found_not_too_deep_and_once_each(tmp_path):
    runs = [write_fake_run(tmp_path / name, rows=ROWS) for name in ("b", "more/a", "more/deeper/still")]
    for name in ("one/two/three/four", ".hidden/run", "b/inside"):
        write_fake_run(tmp_path / name, rows=ROWS)
    (tmp_path / "circle").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "self").symlink_to(tmp_path / "self")
    (tmp_path / "zz-again").symlink_to(tmp_path / "b", target_is_directory=True)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "hand").mkdir()
    (tmp_path / "hand" / "run.yaml").write_text("model: {}")
    assert sorted(find_runs(tmp_path)) == sorted(runs)
    assert list(find_runs(tmp_path / "b")) == [tmp_path / "b"]
    assert list(find_runs(tmp_path / "nowhere")) == []


def test_the_newest_comes_first_whatever_clock_it_names(tmp_path):
    times = {"a": "2026-11-21T05:30:00Z", "b": "2026-11-21T06:00:00+02:00", "c": None, "d": "2026-11-21T05:31:00Z"}
    states = [read_state(write_fake_run(tmp_path / name, rows=ROWS, started=when)) for name, when in times.items()]
    os.utime(tmp_path / "c", (1, 1))
    assert [state.folder.name for state in newest_first(states)] == ["d", "a", "b", "c"]


def test_a_folder_that_vanishes_is_no_error():
    found = read_state(Path("nowhere"))
    assert (found.state, found.size, found.checkpoints) == ("unknown", 0, ())
    assert newest_first([found]) == [found]
