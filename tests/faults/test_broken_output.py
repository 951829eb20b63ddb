"""Standard output that breaks: whoever read it has gone, or its disk is full. A run goes on, and says so elsewhere."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager, redirect_stdout

import pytest

from dumbo.cli.main import main
from dumbo.console import Console
from tests import builders
from tests.run.whole_runs import SHIPPED, metrics_of, printed_by

NOTE = "dumbo: standard output cannot be written ({}): what matters is told here"
WORDS = {"reader": "Broken pipe", "disk": "No space left on device"}

# The loss is no number in the third forward pass.
SPOILING = """
from dumbo.losses.token import next_token_cross_entropy
from dumbo.plugin_loader import BasePlugin

class SpoilPlugin(BasePlugin):
    def build_loss(self, config, tokenizer):
        passes = []
        def loss(model, batch, num_items):
            passes.append(1)
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            total = next_token_cross_entropy(model(**inputs).logits, batch["labels"]) / num_items
            return total * float("nan") if len(passes) == 3 else total
        return loss
"""


@contextmanager
def broken_output(way):
    """Standard output is broken in this way: a pipe without a reader, or a file on a full disk."""
    if way == "reader":
        read, write = os.pipe()
        os.close(read)
    else:
        write = os.open("/dev/full", os.O_WRONLY)
    with os.fdopen(write, "w") as stream, redirect_stdout(stream):
        yield


@pytest.mark.parametrize("way", WORDS)
def test_a_run_goes_on_to_its_end_and_says_what_matters_elsewhere(way, tmp_path, model_folder, rows_file, capsys):
    (tmp_path / "own.py").write_text(SPOILING)
    changes = {"plugins": [*SHIPPED, "./own.py:SpoilPlugin"], "trainer.arguments.max_steps": 3}
    file = builders.write_config(tmp_path, model_folder, rows_file, changes)
    with broken_output(way):
        said = printed_by(capsys, 0, "train", str(file)).err
    assert said.count(NOTE.format(WORDS[way])) == 1
    assert "step 2 is skipped: the loss is not finite" in said
    assert "step 1/3" not in said, "metrics have their file"
    assert "the model is in" in said and "report: " in said
    assert [row["step"] for row in metrics_of(tmp_path / "out")] == [1, 2, 3]
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["outcome"] == "finished"


@pytest.mark.parametrize("way", WORDS)
def test_data_is_prepared_to_the_last_row(way, tmp_path, model_folder, rows_file, capsys):
    file = builders.write_config(tmp_path, model_folder, rows_file)
    with broken_output(way):
        said = printed_by(capsys, 0, "preprocess", str(file), "--output", str(tmp_path / "prepared")).err
    assert NOTE.format(WORDS[way]) in said and "train from it: dumbo" in said
    assert main(["train", str(file), f"trainer.data.prepared={tmp_path / 'prepared'}"]) == 0


def test_a_reader_who_has_enough_of_a_text_is_no_error(capsys):
    with broken_output("reader"):
        assert main(["docs", "training"]) == 0
        sys.stdout.flush()  # It is led nowhere by now.
    assert capsys.readouterr().err == ""


def test_a_terminal_that_goes_away_takes_its_bar_along(capsys):
    leader, follower = os.openpty()
    with os.fdopen(follower, "w") as stream:
        console = Console(stream=stream, goes_on=True)
        console.start_training(3)
        os.close(leader)
        console.advance(1)
        console.log_metrics({"train/loss": 1.0}, 1)
        assert list(console.track([1, 2], "counting", 2)) == [1, 2]
        console.say("a line")
        console.say("another")
        console.close("finished")
    assert capsys.readouterr().err.splitlines() == [NOTE.format("Input/output error"), "a line", "another"]


@pytest.mark.full
def test_an_exit_code_survives_that_nothing_can_be_said():
    command = f"exec {sys.executable} -m dumbo train nowhere.yaml >/dev/full 2>&1"
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 2
    command = f"exec {sys.executable} -m dumbo train nowhere.yaml >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 2
