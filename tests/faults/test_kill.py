"""kill -9: nothing whole is lost, nothing half is taken for whole, and the run ends as the one that never stopped."""

import os
import random
import signal
import time

import pytest

from dumbo.cli.main import main
from tests import builders
from tests.faults.stopping import assert_same_run, checkpoints_in, run_forked, stop_by, write_stoppable

SAVES = {
    "trainer.arguments.save_strategy": "steps",
    "trainer.arguments.save_steps": 2,
    "trainer.arguments.save_total_limit": 2,
}


def killing(target, name, call, *, after=False):
    """Replace `target.name` so that its call number `call`, from 1, kills the process: before or after it works."""

    def prepare():
        real, calls = getattr(target, name), []

        def kill(*arguments, **keywords):
            calls.append(name)
            if len(calls) == call and not after:
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*arguments, **keywords)
            if len(calls) == call:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(target, name, kill)

    return prepare


def moments():
    """Where the process is killed, by name, with the step of the last checkpoint that must be there then."""
    from dumbo.bridge import checkpoints, resuming
    from dumbo.bridge.trainer import DumboTrainer
    from dumbo.checkpoint import folder
    from dumbo.checkpoint.manifest import Manifest

    return {
        "before the tensors are written": (killing(checkpoints, "write_tree", 9), 4),
        "when the tensors are written": (killing(checkpoints, "write_tree", 12, after=True), 4),
        "before the manifest": (killing(Manifest, "write", 3), 4),
        "before the checkpoint has its name": (killing(folder, "put_in_place", 2), 2),
        "when the checkpoint has its name": (killing(folder, "put_in_place", 3, after=True), 6),
        "before an old one is removed": (killing(folder, "remove", 1), 6),
        "while an old one is removed": (killing(folder.shutil, "rmtree", 12), None),
        "in an evaluation": (killing(DumboTrainer, "_mean_loss", 2), None),
        "before the model has its name": (killing(resuming, "put_in_place", 1), 18),
    }


NAMES = (
    "before the tensors are written",
    "when the tensors are written",
    "before the manifest",
    "before the checkpoint has its name",
    "when the checkpoint has its name",
    "before an old one is removed",
    "while an old one is removed",
    "in an evaluation",
    "before the model has its name",
)
CHOSEN = ("when the tensors are written", "before the checkpoint has its name", "before the model has its name")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return builders.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", builders.alpaca_rows(26))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model_folder, rows):
    """The run that nobody stops."""
    file = write_stoppable(tmp_path_factory.mktemp("whole") / "run", model_folder, rows, SAVES)
    assert main(["train", str(file)]) == 0
    return file.parent / "out"


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in CHOSEN else pytest.mark.full) for name in NAMES]
)
def test_killed_at_a_chosen_moment(tmp_path, model_folder, rows, whole, name, capfd):
    kill, last = moments()[name]
    file = write_stoppable(tmp_path / "run", model_folder, rows, SAVES)
    assert run_forked(["train", str(file)], kill) == -signal.SIGKILL
    assert main(["train", str(file), "--resume"]) == 0
    if last is not None:
        assert f"after step {last} (step-{last:06})" in capfd.readouterr().out
    assert_same_run(file.parent / "out", whole)
    assert checkpoints_in(file.parent / "out") == checkpoints_in(whole)


def test_killed_before_the_first_checkpoint(tmp_path, model_folder, rows, whole, capfd):
    file = write_stoppable(tmp_path / "run", model_folder, rows, SAVES)
    with stop_by("SIGKILL", 2):
        assert run_forked(["train", str(file)], lambda: None) == -signal.SIGKILL
    assert main(["train", str(file), "--resume"]) == 0
    assert "has no checkpoint yet: it begins anew" in capfd.readouterr().out
    assert_same_run(file.parent / "out", whole)


@pytest.mark.full
def test_a_storm(tmp_path, model_folder, rows, whole):
    """Killed at random again and again, until there were thirty kills: every run ends as the one that nobody stops."""
    every = {**SAVES, "trainer.arguments.save_steps": 1}
    draw, kills, runs = random.Random(0), 0, 0
    while kills < 30:
        file = write_stoppable(tmp_path / f"run-{runs}", model_folder, rows, every)
        runs, code = runs + 1, None
        while code != 0:
            child = os.fork()
            if child == 0:
                code = 99
                try:
                    code = main(["train", str(file), "--resume"])
                finally:
                    os._exit(code)
            time.sleep(draw.uniform(0.2, 4.0))
            os.kill(child, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            assert code in (0, -signal.SIGKILL)
            kills += code != 0
        assert_same_run(file.parent / "out", whole)
