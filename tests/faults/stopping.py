"""Runs that are stopped at a chosen moment and go on, and what they are compared with."""

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

from dumbo.cli.main import main
from tests import builders
from tests.run.whole_runs import SHIPPED, metrics_of, weights_of

STOPPER = '''
import os
import signal

from dumbo.plugin_loader import CallbackPlugin


class StopperPlugin(CallbackPlugin):
    """Sends this process a signal when a step begins: `DUMBO_STOP=SIGTERM@7`."""

    name = "stopper"

    def get_callbacks(self, config):
        from transformers import TrainerCallback

        class Stopper(TrainerCallback):
            def on_step_begin(self, args, state, control, **more):
                name, _, step = os.environ.get("DUMBO_STOP", "").partition("@")
                if name and state.global_step + 1 == int(step):
                    os.kill(os.getpid(), getattr(signal, name))

        return [Stopper()]
'''
"""The plugin beside the configuration; it also shows that a run with a user's plugin goes on."""

BASE = {
    "trainer.arguments.max_steps": None,
    "trainer.arguments.num_train_epochs": 3,
    "trainer.arguments.logging_steps": 4,
    "trainer.arguments.eval_strategy": "epoch",
    "trainer.data.val_set_size": 4,
}
"""Three epochs of six steps, two forward passes each; metrics are means over steps on both sides of a stop."""


def write_stoppable(folder: Path, model: Path, rows: Path, changes: dict, plugins: tuple[str, ...] = ()) -> Path:
    """A configuration whose run can be stopped by `DUMBO_STOP`, and goes to `folder/out`."""
    folder.mkdir(parents=True)
    (folder / "stopper.py").write_text(STOPPER)
    listed = [*SHIPPED, *plugins, "./stopper.py:StopperPlugin"]
    dotted = {**BASE, "plugins": listed, **changes}
    kept = {key: value for key, value in dotted.items() if value is not builders.REMOVE}
    return builders.write_config(folder, model, rows, kept)


@contextlib.contextmanager
def stop_by(name: str, step: int):
    """While this lasts, runs get the signal when that step begins."""
    os.environ["DUMBO_STOP"] = f"{name}@{step}"
    try:
        yield
    finally:
        del os.environ["DUMBO_STOP"]


def assert_same_run(folder: Path, whole: Path) -> None:
    """The run in `folder` has left the weights and logged the metrics of `whole`, bit by bit."""
    import torch

    ours, theirs = weights_in(folder / "model"), weights_in(whole / "model")
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert metrics_of(folder) == metrics_of(whole)


def weights_in(folder: Path) -> dict:
    """The tensors of a model or an adapter."""
    from safetensors.torch import load_file

    adapter = folder / "adapter_model.safetensors"
    return load_file(adapter) if adapter.exists() else weights_of(folder)


def checkpoints_in(folder: Path) -> list[str]:
    """The names of everything in the run's folder of checkpoints."""
    return sorted(path.name for path in (folder / "checkpoints").glob("*"))


def run_forked(words: list[str], prepare: Callable[[], None]) -> int:
    """Run `dumbo WORDS...` in a fork of this process, which has everything imported, after `prepare`; return its exit
    code, or minus the number of the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 99
        try:
            signal.alarm(120)
            prepare()
            code = main(words)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
