"""Ctrl-C: in training the model is saved and said where, before it nothing is left; the exit code tells."""

import re
import signal
import subprocess
import sys
import time

import pytest

from tests import builders
from tests.run.whole_runs import SHIPPED, metrics_of

SLOW = '''
import time
from dumbo.plugin_loader import BasePlugin

class SlowPlugin(BasePlugin):
    """Waits where it is told to, so that there is time to interrupt."""
    def patch_model(self, model, config):
        if config.trainer.seed == 1:
            print("waiting before training", flush=True)
            time.sleep(60)
        return model
    def get_callbacks(self, config):
        from transformers import TrainerCallback
        class Wait(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                time.sleep(0.05)
                if config.trainer.seed == 3 and state.global_step == 2:
                    print("waiting in a step", flush=True)
                    time.sleep(60)
        return [Wait()]
'''


def start(folder, model_folder, rows_file, seed, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "slow.py").write_text(SLOW)
    dotted = {
        "plugins": [*SHIPPED, "./slow.py:SlowPlugin"],
        "trainer.seed": seed,
        "trainer.arguments.max_steps": 1000,
        "trainer.data.val_set_size": 2,
        "trainer.arguments.eval_strategy": "steps",
        "trainer.arguments.eval_steps": 500,
    }
    file = builders.write_config(folder, model_folder, rows_file, dotted | changes)
    return subprocess.Popen(
        [sys.executable, "-m", "dumbo", str(file)],
        env=builders.clean_environment(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what runs in the background with Ctrl-C ignored, and so would be what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def interrupt_at(process, line_start, *, again=False):
    """Send SIGINT when a line that begins like this is printed; the rest of what the process says."""
    for line in process.stdout:
        if line.startswith(line_start):
            break
    process.send_signal(signal.SIGINT)
    if again:
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=60)
    assert "Traceback" not in error
    return output, error


@pytest.mark.full
def test_in_training_the_model_is_saved_and_its_place_said(tmp_path, model_folder, rows_file):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    process = start(tmp_path, model_folder, rows_file, seed=2)
    output, error = interrupt_at(process, "step 3/")
    assert process.returncode == 130, error
    message = re.fullmatch(
        r"stopped after step (\d+) of 1000; the model as it was is in (.+)\n +to go on: dumbo train .+\n", error
    )
    assert message, error
    steps = int(message[1])
    folder = tmp_path / "out" / "checkpoints" / f"step-{steps:06}"
    assert message[2] == str(folder)
    assert 3 <= steps < 20, "the step that ran was ended, and no other"
    assert metrics_of(tmp_path / "out")[-1]["step"] == steps, "the last step is logged"
    assert "eval/loss" not in output, "nobody waits for an evaluation"
    AutoModelForCausalLM.from_pretrained(folder)
    AutoTokenizer.from_pretrained(folder)
    assert not (tmp_path / "out" / "model").exists(), "what was stopped is not taken for what was finished"
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.full
def test_before_training_nothing_is_left(tmp_path, model_folder, rows_file):
    process = start(tmp_path, model_folder, rows_file, seed=1)
    _, error = interrupt_at(process, "waiting before training")
    assert process.returncode == 130, error
    assert error == "stopped; nothing was trained\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.full
def test_a_second_time_in_a_step_that_hangs_ends_it_at_once(tmp_path, model_folder, rows_file):
    process = start(tmp_path, model_folder, rows_file, seed=3)
    _, error = interrupt_at(process, "waiting in a step", again=True)
    assert process.returncode == 130, error
    assert error == "stopped at once, after step 2; there is no checkpoint\n"
    assert [row["step"] for row in metrics_of(tmp_path / "out")] == [1, 2]
