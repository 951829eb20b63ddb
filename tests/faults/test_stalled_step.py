"""A step that hangs ends the run with the stacks of all threads, whether or not it can be raised out of."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from dumbo.errors import RunError
from dumbo.watchdog import Watchdog
from tests import builders
from tests.run.whole_runs import SHIPPED, metrics_of, printed_by

# Hangs where it is told to, in the step of that number.
HANGING = """
import time
from transformers import TrainerCallback
from dumbo.metrics import MetricsCollector
from dumbo.plugin_loader import BasePlugin

class Slow(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        time.sleep(2.5 * (state.global_step == 2))

class HangPlugin(BasePlugin):
    def build_collator(self, config, tokenizer):
        from dumbo.data.collate import PaddingCollator
        pad, self.batches = PaddingCollator(tokenizer.pad_token_id), 0
        def collate(rows):
            self.batches += 1
            if self.batches == 5:
                hang_in_the_collator()
            return pad(rows)
        return collate

class Swallowing(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 1:
            try:
                time.sleep(30)
            except Exception:
                pass

class SwallowPlugin(BasePlugin):
    def get_callbacks(self, config):
        return [Swallowing()]

class DeafPlugin(BasePlugin):
    def build_collator(self, config, tokenizer):
        def collate(rows):
            while True:
                try:
                    time.sleep(60)
                except Exception:
                    print("swallowed", flush=True)
        return collate

class SlowPlugin(BasePlugin):
    def get_callbacks(self, config):
        return [Slow()]
    def build_evaluator(self, config):
        return lambda: time.sleep(2.5) or {"seconds": 2.5}

class ClosedPlugin(BasePlugin, MetricsCollector):
    def get_metrics_collector(self):
        return self
    def log_metrics(self, metrics, step):
        pass
    def close(self, outcome):
        print("tracker closed:", outcome)

def hang_in_the_collator():
    while True:
        time.sleep(3600)
"""


@pytest.fixture
def run(tmp_path, model_folder, rows_file, capsys):
    """Trains with plugins that hang, or are slow; returns what was printed and what was said against it."""

    def train(code, *names, **changes):
        (tmp_path / "own.py").write_text(HANGING)
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        base = {"trainer.arguments.max_steps": 4, "plugins": [*SHIPPED, *(f"./own.py:{name}" for name in names)]}
        file = builders.write_config(tmp_path, model_folder, rows_file, base | dotted)
        return printed_by(capsys, code, "train", str(file))

    train.folder = tmp_path / "out"
    return train


def test_a_step_that_hangs_ends_the_run_which_closes_as_ever(run):
    before = signal.getsignal(signal.SIGUSR2)
    printed = run(2, "HangPlugin", "ClosedPlugin", trainer__faults={"step_timeout": 1.0})
    file = run.folder / "stalled-step-000003.txt"
    assert printed.err.splitlines()[-3:] == [
        "step 3 took longer than 1 seconds: the run hangs",
        f"    what every thread was doing is in {file}",
        "    if steps may take so long, set trainer.faults.step_timeout",
    ]
    stacks = file.read_text()
    assert "in hang_in_the_collator" in stacks and 'own.py", line' in stacks
    assert stacks.count("most recent call first") >= 2, "all threads"
    assert "in hang_in_the_collator" in printed.err
    assert "tracker closed: failed" in printed.out
    assert [row["step"] for row in metrics_of(run.folder)] == [1, 2]
    assert (run.folder / "report.html").exists()
    assert signal.getsignal(signal.SIGUSR2) is before


@pytest.mark.full
def test_what_is_no_step_may_take_its_time(run):
    evaluated = {"trainer__data__val_set_size": 2}
    run(0, "SlowPlugin", trainer__faults={"step_timeout": 2.0}, trainer__arguments__max_steps=3, **evaluated)
    assert metrics_of(run.folder)[-1]["step"] == 3


@pytest.mark.parametrize("max_steps", [2, 100])
def test_a_step_that_catches_the_error_ends_the_run_when_it_is_over(run, max_steps):
    printed = run(2, "SwallowPlugin", trainer__faults={"step_timeout": 1.0}, trainer__arguments__max_steps=max_steps)
    assert "step 2 took longer than 1 seconds: the run hangs\n" in printed.err
    assert [row["step"] for row in metrics_of(run.folder)] == [1]
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["outcome"] == "failed" and summary["error"].startswith("step 2 took longer than 1 seconds")
    assert not (run.folder / "run.lock").exists()


@pytest.mark.full
def test_a_run_that_does_not_listen_leaves_word_of_its_end(tmp_path, model_folder, rows_file):
    (tmp_path / "own.py").write_text(HANGING)
    changes = {"trainer.faults": {"step_timeout": 1.0}, "plugins": [*SHIPPED, "./own.py:DeafPlugin"]}
    file = builders.write_config(tmp_path, model_folder, rows_file, changes)
    words = [sys.executable, "-m", "dumbo", "train", str(file)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2 and "step 1 took longer than 1 seconds: the run hangs\n" in done.stderr
    assert "swallowed" in done.stdout
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["outcome"] == "failed" and summary["error"].startswith("step 1 took longer than 1 seconds")
    assert not (tmp_path / "out" / "run.lock").exists()


def test_the_process_ends_only_where_the_same_step_still_runs(tmp_path):
    child = os.fork()
    if not child:
        watchdog = Watchdog(0.2, "stalled-step-{step}.txt", tmp_path, grace=0.5)
        watchdog.start()
        watchdog.begin(7)
        with suppress(RunError):
            time.sleep(60)
        raised = []
        for end_the_step in (watchdog.pause, lambda: watchdog.begin(8)):
            try:
                end_the_step()
            except RunError as error:
                raised.append(str(error).startswith("step 7 took longer"))
        time.sleep(1.5)
        os._exit(3 if raised == [True, True] else 4)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


def test_a_main_thread_that_does_not_listen_is_left(tmp_path):
    def write_last_words(message):
        (tmp_path / "last").write_text(message)
        raise RuntimeError("and no more")

    read, write = os.pipe()
    child = os.fork()
    if not child:
        sys.stderr = os.fdopen(write, "w")
        watchdog = Watchdog(0.2, "stalled-step-{step}.txt", tmp_path, grace=0.5, before_exit=write_last_words)
        watchdog.start()
        watchdog.begin(7)
        while True:
            try:
                time.sleep(60)
            except RunError:
                print("swallowed", file=sys.stderr, flush=True)
    os.close(write)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    with os.fdopen(read) as stream:
        said = stream.read()
    assert "swallowed\n" in said and "Traceback" not in said
    assert (tmp_path / "last").read_text().startswith("step 7 took longer than 0.2 seconds")
    assert "step 7 took longer than 0.2 seconds: the run hangs\n" in said
    assert "test_a_main_thread_that_does_not_listen" in (tmp_path / "stalled-step-000007.txt").read_text()


@pytest.mark.full
def test_nothing_is_said_of_steps_that_end_in_time_or_when_a_folder_cannot_be_written(tmp_path, capfd):
    watchdog = Watchdog(1.0, "stalled-step-{step}.txt", tmp_path / "nowhere", grace=60)
    watchdog.start()
    for step in range(5):
        watchdog.begin(step)
        time.sleep(0.3)
    watchdog.pause()
    time.sleep(1.5)
    assert capfd.readouterr() == ("", "")
    watchdog.begin(5)
    with pytest.raises(RunError, match=r"stalled-step-000005\.txt cannot be written: No such file"):
        time.sleep(60)
    watchdog.close()
    assert "most recent call first" in capfd.readouterr().err
