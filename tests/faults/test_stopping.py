"""Being stopped at awkward moments: in an evaluation, with no room for a checkpoint, in a folder for reading, as two
processes."""

import itertools
import json
import os
import subprocess
import sys
import time

import pytest

from dumbo.cli.main import main
from tests import builders
from tests.distributed.test_two_processes import TORCHRUN
from tests.faults.stopping import assert_same_run, checkpoints_in, stop_by, write_stoppable

ASKED_IN_EVALUATION = '''
import os
import signal

from dumbo.plugin_loader import EvaluatorPlugin


class AskedPlugin(EvaluatorPlugin):
    """Asks for the end in the middle of the evaluation with that number."""

    name = "asked"
    metrics = ("calls",)

    def __init__(self):
        self.calls = 0

    def build_evaluator(self, config):
        def evaluate():
            self.calls += 1
            if self.calls == int(os.environ.get("DUMBO_STOP_EVALUATION", 0)):
                os.kill(os.getpid(), signal.SIGTERM)
            return {"calls": 1.0}

        return evaluate


class SecondPlugin(EvaluatorPlugin):
    """Comes after, and must not be asked any more."""

    name = "second"
    metrics = ("draw",)

    def build_evaluator(self, config):
        def evaluate():
            import torch

            return {"draw": torch.rand(()).item()}

        return evaluate
'''


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return builders.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", builders.alpaca_rows(26))


@pytest.mark.parametrize("strategy", ["epoch", pytest.param("steps", marks=pytest.mark.full)])
def test_in_an_evaluation(tmp_path, model_folder, rows, monkeypatch, capfd, strategy):
    """The rest of it is left for later, and comes first when the run goes on, with the numbers of the whole run."""
    changes = {"trainer.arguments.eval_strategy": strategy, "trainer.arguments.save_strategy": "epoch"}
    changes |= {"trainer.arguments.eval_steps": 5} if strategy == "steps" else {}
    plugins = ("./asked.py:AskedPlugin", "./asked.py:SecondPlugin")
    whole = write_stoppable(tmp_path / "whole", model_folder, rows, changes, plugins)
    stopped = write_stoppable(tmp_path / "stopped", model_folder, rows, changes, plugins)
    for file in (whole, stopped):
        (file.parent / "asked.py").write_text(ASKED_IN_EVALUATION)
    assert main(["train", str(whole)]) == 0
    monkeypatch.setenv("DUMBO_STOP_EVALUATION", "2")
    assert main(["train", str(stopped)]) == 75
    step = 12 if strategy == "epoch" else 10
    assert f"stopped after step {step} of 18" in capfd.readouterr().err
    logged = [json.loads(line) for line in (stopped.parent / "out" / "metrics.jsonl").read_text().splitlines()]
    assert sum("eval/loss" in line for line in logged) == 1
    monkeypatch.setenv("DUMBO_STOP_EVALUATION", "0")
    assert main(["train", str(stopped), "--resume"]) == 0
    assert_same_run(stopped.parent / "out", whole.parent / "out")


@pytest.mark.skipif(os.geteuid() != 0, reason="a small disk can be mounted by root alone")
def test_no_room_for_a_checkpoint(tmp_path, model_folder, rows, capfd):
    """It is told, and the training goes on to its end; what was there is still whole."""
    disk = tmp_path / "run" / "out"
    saves = {"trainer.arguments.save_strategy": "steps", "trainer.arguments.save_steps": 3}
    file = write_stoppable(tmp_path / "run", model_folder, rows, saves)
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        assert main(["train", str(file)]) == 0
        said = capfd.readouterr().out
        assert "no checkpoint was written, and the training goes on: " in said
        names = checkpoints_in(disk)
        assert names and all(name.startswith("step-") and "." not in name for name in names), "nothing half is left"
        assert (disk / "model" / "model.safetensors").exists()
        assert [json.loads(line)["step"] for line in (disk / "metrics.jsonl").read_text().splitlines()][-1] == 18
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_checkpoint_that_fails_in_the_background(tmp_path, model_folder, rows, monkeypatch, capfd):
    """It is told when the next one is due, which is written all the same."""
    from dumbo.checkpoint import folder

    real, calls = folder.sealed_files, []

    def refused_once(partial):
        calls.append(partial)
        if len(calls) == 2:
            raise OSError("the disk is gone")
        return real(partial)

    monkeypatch.setattr(folder, "sealed_files", refused_once)
    saves = {"trainer.arguments.save_strategy": "steps", "trainer.arguments.save_steps": 6}
    file = write_stoppable(tmp_path / "run", model_folder, rows, saves)
    assert main(["train", str(file)]) == 0
    assert "the last checkpoint could not be written: the disk is gone" in capfd.readouterr().out
    assert checkpoints_in(file.parent / "out") == ["step-000006", "step-000018"]


def test_a_stop_and_a_signal_for_a_checkpoint_before_the_first_step(tmp_path, model_folder, rows, capfd):
    file = write_stoppable(tmp_path / "run", model_folder, rows, {"trainer.arguments.eval_on_start": True})
    with stop_by("SIGUSR1", 1):
        assert main(["train", str(file)]) == 0
    assert checkpoints_in(file.parent / "out") == ["step-000001"]
    assert "no checkpoint was written" not in capfd.readouterr().out


@pytest.mark.skipif(os.geteuid() != 0, reason="a disk for reading can be mounted by root alone")
def test_a_folder_for_reading_alone(tmp_path, model_folder, rows, capfd):
    file = write_stoppable(tmp_path / "run", model_folder, rows, {})
    disk = file.parent / "out"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        assert main(["train", str(file)]) == 2
        assert f"the run's folder {disk} cannot be written to: Read-only file system" in capfd.readouterr().err
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.full
def test_clocks_that_jump(tmp_path, model_folder, rows, monkeypatch):
    """Back and forth by years: checkpoints by the clock, time limits of steps and the lock go by another clock."""
    clock = {"trainer.checkpoints.every_minutes": 1000.0, "trainer.faults.step_timeout": 60.0}
    clock |= {"trainer.arguments.save_strategy": "epoch"}
    plain = write_stoppable(tmp_path / "plain", model_folder, rows, clock)
    assert main(["train", str(plain)]) == 0
    real, jumps = time.time, itertools.cycle([0.0, 1e8, -1e8, 3e8])
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))
    file = write_stoppable(tmp_path / "run", model_folder, rows, clock)
    with stop_by("SIGTERM", 8):
        assert main(["train", str(file)]) == 75
    assert checkpoints_in(file.parent / "out") == ["step-000006", "step-000008"]
    assert main(["train", str(file), "--resume"]) == 0
    assert_same_run(file.parent / "out", plain.parent / "out")


SLEEPER = """
import time

from dumbo.plugin_loader import ModelPatcherPlugin


class SleeperPlugin(ModelPatcherPlugin):
    name = "sleeper"

    def patch_model(self, model, config):
        print("sleeping", flush=True)
        time.sleep(60)
        return model
"""


@pytest.mark.full
def test_terminated_before_the_first_step(tmp_path, model_folder, rows):
    """Everything is closed, nothing is left, and the exit code says that it is worth another try."""
    file = write_stoppable(tmp_path / "run", model_folder, rows, {}, ("./sleeper.py:SleeperPlugin",))
    (file.parent / "sleeper.py").write_text(SLEEPER)
    command = [sys.executable, "-m", "dumbo", str(file)]
    with subprocess.Popen(command, env=builders.clean_environment(), text=True, stdout=-1, stderr=-1) as process:
        assert process.stdout is not None
        assert any("sleeping" in line for line in process.stdout)
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 75
    assert said == "stopped by SIGTERM between steps\n    the same command with --resume goes on\n"
    assert not (file.parent / "out").exists()


@pytest.mark.full
def test_two_processes_go_on(tmp_path, model_folder, rows, capfd):
    """Stopped as two processes, they go on as two, and not as one."""
    changes = {"trainer.arguments.batch_size": 4, "trainer.arguments.save_strategy": "steps"}
    changes |= {"trainer.arguments.save_steps": 5}
    whole = write_stoppable(tmp_path / "whole", model_folder, rows, changes)
    stopped = write_stoppable(tmp_path / "stopped", model_folder, rows, changes)

    def torchrun(*words, **environment):
        command = [*TORCHRUN, *map(str, words)]
        variables = builders.clean_environment(**environment)
        return subprocess.run(command, env=variables, capture_output=True, text=True, timeout=240, check=False)

    assert torchrun(whole).returncode == 0
    assert "stopped after step 8" in torchrun(stopped, DUMBO_STOP="SIGINT@8").stderr
    out = stopped.parent / "out"
    assert checkpoints_in(out) == ["step-000005", "step-000008"]
    assert main(["train", str(stopped), "--resume"]) == 2
    assert "was written by 2 processes, and this run has 1" in capfd.readouterr().err
    assert torchrun(stopped, "--resume").returncode == 0
    assert_same_run(out, whole.parent / "out")
