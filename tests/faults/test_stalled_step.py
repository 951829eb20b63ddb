"""A step that hangs ends the run with the stacks of all threads, whether or not it can be raised out of."""

import os
import signal
import sys
import time

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


def test_what_is_no_step_may_take_its_time(run):
    evaluated = {"trainer__data__val_set_size": 2}
    run(0, "SlowPlugin", trainer__faults={"step_timeout": 2.0}, trainer__arguments__max_steps=3, **evaluated)
    assert metrics_of(run.folder)[-1]["step"] == 3


def test_a_main_thread_that_does_not_listen_is_left(tmp_path):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        sys.stderr = os.fdopen(write, "w")
        watchdog = Watchdog(0.2, "stalled-step-{step}.txt", tmp_path, grace=0.5)
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
    assert "swallowed\n" in said
    assert "step 7 took longer than 0.2 seconds: the run hangs\n" in said
    assert "test_a_main_thread_that_does_not_listen" in (tmp_path / "stalled-step-000007.txt").read_text()


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
