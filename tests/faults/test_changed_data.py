"""Data files that change, or go, while a run reads them: either nothing changes, or one error names the file."""

import json
import os

import polars
import pytest

from dumbo.data import sources
from dumbo.data.changed_files import FileStamps
from dumbo.errors import RunError
from tests import builders
from tests.run.whole_runs import SHIPPED, printed_by, weights_of

# Does something to the data before a step, or when the model is patched: the rows were read by then.
CHANGING = """
import os
import shutil
from pathlib import Path
from transformers import TrainerCallback
from dumbo.plugin_loader import BasePlugin

HERE = Path(__file__).parent

def change():
    how, file = (HERE / "change.txt").read_text().split()
    file = Path(file)
    if how == "truncated":
        os.truncate(file, file.stat().st_size // 2)
    elif how == "removed":
        file.unlink()
    elif how == "replaced":
        other = file.with_name("other")
        other.write_bytes(file.read_bytes().replace(b"sum", b"SUM"))
        other.replace(file)

class Change(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 2:
            change()

class LatePlugin(BasePlugin):
    def get_callbacks(self, config):
        return [Change()]

class EarlyPlugin(BasePlugin):
    def patch_model(self, model, config):
        change()
        return model
"""
STREAM = {"sequence_length": 256, "streaming": True, "shuffle_buffer": 4}


@pytest.fixture
def run(tmp_path, model_folder, capsys):
    """Trains while something happens to the data; returns what was printed, or said against it."""

    def train(code, how, plugin, file="rows.jsonl", rows=40, steps=12, **changes):
        (tmp_path / "own.py").write_text(CHANGING)
        train.file = tmp_path / file
        (tmp_path / "change.txt").write_text(f"{how} {train.file}")
        written = builders.alpaca_rows(rows)
        if train.file.suffix == ".parquet":
            polars.DataFrame(written).write_parquet(train.file, row_group_size=4)
        else:
            builders.write_rows(train.file, written)
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        base = {
            "trainer.arguments.max_steps": steps,
            "trainer.output_dir": str(tmp_path / f"out-{how}"),
            "plugins": [*SHIPPED, f"./own.py:{plugin}"],
        }
        config = builders.write_config(tmp_path, model_folder, train.file, base | dotted)
        printed = printed_by(capsys, code, "train", str(config))
        train.folder, train.said = tmp_path / f"out-{how}", printed.out
        return printed.err if code else printed.out

    return train


@pytest.mark.parametrize(
    ("how", "plugin"), [("truncated", "LatePlugin"), ("replaced", "LatePlugin"), ("removed", "EarlyPlugin")]
)
def test_rows_that_were_read_are_trained_whatever_becomes_of_the_file(run, how, plugin):
    run(0, "nothing", plugin, rows=12, steps=4)
    before = weights_of(run.folder / "model")
    run(0, how, plugin, rows=12, steps=4, trainer__data__cache=False)
    after = weights_of(run.folder / "model")
    assert all(after[name].equal(before[name]) for name in before)


REFUSALS = {"truncated": "was changed", "replaced": "was changed", "removed": "is no longer there"}


@pytest.mark.parametrize(("how", "file"), [*((how, "rows.jsonl") for how in REFUSALS), ("truncated", "rows.parquet")])
def test_a_stream_whose_file_changes_ends_with_its_name_and_keeps_its_steps(run, how, file):
    said = run(2, how, "LatePlugin", file=file, trainer__data=STREAM)
    assert said.splitlines() == [
        f"{run.file} {REFUSALS[how]} since the run began",
        "    a run that reads its rows again needs them as they were; start it again, or on a copy",
    ]
    assert "stopped after step" in run.said
    (checkpoint,) = (run.folder / "checkpoints").glob("stopped-*")
    assert weights_of(checkpoint)


def test_a_stream_that_nobody_touches_begins_anew(run):
    assert "begins anew" in run(0, "nothing", "LatePlugin", trainer__data=STREAM)


@pytest.mark.parametrize("how", REFUSALS)
def test_a_source_that_is_too_large_to_keep_is_not_read_again_as_another(run, how, monkeypatch):
    monkeypatch.setattr(sources, "_KEPT_RECORDS", 5)
    said = run(2, how, "EarlyPlugin", trainer__data__cache=False)
    assert said.startswith(f"{run.file} {REFUSALS[how]} since the run began\n")


def test_files_of_a_folder_are_known(tmp_path):
    (tmp_path / "data").mkdir()
    file = builders.write_rows(tmp_path / "data" / "a.jsonl")
    for second, path in enumerate((str(tmp_path / "data"), str(tmp_path / "*" / "*.jsonl"))):
        stamps = FileStamps.now([path])
        stamps.refuse_changes()
        (tmp_path / "data" / "some.log").write_text("a line")
        other = builders.write_rows(tmp_path / "data" / "b.jsonl")
        with pytest.raises(RunError, match="b.jsonl is new"):
            stamps.refuse_changes()
        other.unlink()
        os.utime(file, (second, second))
        with pytest.raises(RunError, match="a.jsonl was changed"):
            stamps.refuse_changes()
    assert json.dumps(dict(FileStamps.now(["owner/name", "s3://bucket/file", "a\0b"]).stamps)) == "{}"
