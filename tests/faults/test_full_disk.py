"""A disk that gets full: what is written stays whole, the training goes on, and what could not be saved is named."""

import json
import subprocess

import pytest

from dumbo.disk import LineFile, free_space
from tests import builders
from tests.run.whole_runs import SHIPPED, metrics_of, printed_by, weights_of

# Fills the disk of the run's folder after a step, and makes room after another one.
FILLING = """
import json
import os
from pathlib import Path
from transformers import TrainerCallback
from dumbo.plugin_loader import BasePlugin

PLAN = json.loads((Path(__file__).parent / "plan.json").read_text())

def fill(folder, leave=0):
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            file.truncate(max(file.tell() - leave, 0))

class Filling(TrainerCallback):
    def __init__(self, folder):
        self.folder = folder
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == PLAN["full_after"]:
            fill(self.folder)
        if state.global_step == PLAN["free_after"]:
            whole = (self.folder / "out" / "metrics.jsonl").read_bytes()
            assert whole.endswith(b"\\n") and [json.loads(line) for line in whole.splitlines()]
            assert whole.count(b"\\n") < state.global_step, "some had to wait"
            (self.folder / "filler").unlink()

class FillPlugin(BasePlugin):
    def patch_model(self, model, config):
        if PLAN["leave"]:
            fill(self.services.output_dir.parent, PLAN["leave"])
        return model
    def get_callbacks(self, config):
        return [Filling(self.services.output_dir.parent)]
"""


@pytest.fixture
def disk(tmp_path):
    """A folder with a disk of its own, of 4 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root can mount a disk")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def run(disk, tmp_path, model_folder, rows_file, capsys):
    """Trains in a folder on that disk; returns what was printed, or said against it."""

    def train(code=0, *, full_after=-1, free_after=-1, leave=0, **changes):
        (tmp_path / "own.py").write_text(FILLING)
        (tmp_path / "plan.json").write_text(
            json.dumps({"full_after": full_after, "free_after": free_after, "leave": leave})
        )
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        base = {"trainer.output_dir": str(disk / "out"), "plugins": [*SHIPPED, "./own.py:FillPlugin"]}
        file = builders.write_config(tmp_path, model_folder, rows_file, base | dotted)
        printed = printed_by(capsys, code, "train", str(file))
        train.folder, train.said = disk / "out", printed.out
        return printed.err if code else printed.out

    return train


def test_lines_wait_until_there_is_room_and_none_is_lost(run):
    said = run(full_after=2, free_after=50, trainer__arguments__max_steps=55)
    assert said.count("metrics.jsonl cannot be written: No space left on device; its lines wait") == 1
    assert [row["step"] for row in metrics_of(run.folder)] == list(range(1, 56))
    assert weights_of(run.folder / "model")


def test_a_disk_that_stays_full_is_named_where_the_model_should_go(run):
    said = run(2, full_after=2, trainer__arguments__max_steps=50)
    first, second = said.splitlines()[-2:]
    assert first.startswith(f"the model could not be written to {run.folder / 'model'}: ")
    assert second == f"    {run.folder} has room for 0.0 KiB"
    assert "the last" in run.said and "lines of metrics.jsonl are lost" in run.said
    assert [row["step"] for row in metrics_of(run.folder)] == list(range(1, 1 + len(metrics_of(run.folder))))
    assert not (run.folder / "model").exists() and not list(run.folder.glob("*.partial"))


def test_too_little_room_is_told_before_the_first_step(run):
    said = run(leave=1_300_000, trainer__arguments__save_strategy="steps", trainer__arguments__save_steps=50)
    assert "the disk is nearly full: saving needs about 2.0 MiB, and" in said
    assert said.index("nearly full") < said.index("step 1/2")


def test_half_a_line_is_never_in_a_file(disk, capsys):
    file = LineFile(disk / "lines", print)
    line = "x" * 100_000
    for _ in range(60):
        file.write(line)
    kept = (disk / "lines").read_text().splitlines()
    assert 30 < len(kept) < 60 and set(kept) == {line}
    assert capsys.readouterr().out.count("No space left on device") == 1
    assert free_space(disk / "deeper" / "still") < len(line) + 4096
    subprocess.run(["mount", "-o", "remount,size=16m", disk], check=True)
    file.close()
    assert (disk / "lines").read_text().splitlines() == [line] * 60
    assert capsys.readouterr().out == ""


def test_the_file_is_closed_though_nobody_can_be_told_what_is_lost(disk):
    said = []

    def say(text):
        said.append(text)
        if "lost" in text:
            raise OSError("nobody is there")

    file = LineFile(disk / "lines", say)
    for _ in range(60):
        file.write("x" * 100_000)
    with pytest.raises(OSError, match="nobody is there"):
        file.close()
    assert "lines of lines are lost" in said[-1]
    subprocess.run(["umount", disk], check=True)  # It would be busy.
    subprocess.run(["mount", "-t", "tmpfs", "none", disk], check=True)
