"""A loss that leaps: the way back to the last checkpoint, and on with the next rows."""

import random

import pytest
import torch

from dumbo.bridge.spikes import LEAST, WINDOW, SpikeWatch
from dumbo.cli.main import main
from tests import builders
from tests.faults.stopping import assert_same_run, stop_by, weights_in, write_stoppable
from tests.run.whole_runs import metrics_of

LEAPS = """
import os

from dumbo.losses.token import next_token_cross_entropy
from dumbo.plugin_loader import CallbackPlugin, LossPlugin


class LeapsPlugin(CallbackPlugin, LossPlugin):
    name = "leaps"
    bad = False

    def get_callbacks(self, config):
        from transformers import TrainerCallback

        plugin = self
        steps = {int(step) for step in os.environ["DUMBO_LEAPS"].split()}

        class Leap(TrainerCallback):
            def on_step_begin(self, args, state, control, **more):
                plugin.bad = state.global_step + 1 in steps

        return [Leap()]

    def build_loss(self, config, tokenizer):
        def loss(model, batch, num_items):
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            share = next_token_cross_entropy(model(**inputs).logits, batch["labels"]) / num_items
            return share * (100.0 if self.bad else 1.0)

        return loss
"""
OPTIONS = {
    "trainer.arguments.num_train_epochs": builders.REMOVE,
    "trainer.arguments.max_steps": 32,
    "trainer.arguments.logging_steps": 1,
    "trainer.arguments.eval_strategy": builders.REMOVE,
    "trainer.data.val_set_size": 0,
    "trainer.arguments.save_strategy": "steps",
    "trainer.arguments.save_steps": 5,
    "trainer.faults.on_spike": "rollback",
}


def write(folder, model, rows, changes=None):
    file = write_stoppable(folder, model, rows, {**OPTIONS, **(changes or {})}, ("./leaps.py:LeapsPlugin",))
    (folder / "leaps.py").write_text(LEAPS)
    return file


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return builders.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", builders.alpaca_rows(26))


def test_the_way_back(tmp_path, model_folder, rows, monkeypatch, capfd):
    """Step 25 leaps: after it the weights are those of step 20, and it goes on; stopped at 22 it comes out the same."""
    monkeypatch.setenv("DUMBO_LEAPS", "25")
    file = write(tmp_path / "whole", model_folder, rows)
    assert main(["train", str(file)]) == 0
    out = file.parent / "out"
    said = capfd.readouterr().out
    assert "step 25: the loss is " in said and "times the mean of 24 steps" in said
    assert f"model and optimizer are as in {out / 'checkpoints' / 'step-000020'} again" in said
    before, after = (weights_in(out / "checkpoints" / f"step-0000{step}") for step in (20, 25))
    assert all(torch.equal(before[name], after[name]) for name in before)
    last = weights_in(out / "model")
    assert any(not torch.equal(before[name], last[name]) for name in before)
    counted = {row["step"]: row.get("train/rollbacks") for row in metrics_of(out)}
    assert (counted[24], counted[25], counted[32]) == (None, 1, 1)
    stopped = write(tmp_path / "stopped", model_folder, rows)
    with stop_by("SIGTERM", 22):
        assert main(["train", str(stopped)]) == 75
    assert main(["train", str(stopped), "--resume"]) == 0
    assert_same_run(stopped.parent / "out", out)


def test_ways_back_that_lead_nowhere_end_the_run(tmp_path, model_folder, rows, monkeypatch, capfd):
    monkeypatch.setenv("DUMBO_LEAPS", "24 25 26 27 28")
    file = write(tmp_path / "run", model_folder, rows)
    assert main(["train", str(file)]) == 2
    said = capfd.readouterr()
    assert said.out.count("times the mean of 23 steps") == 3
    assert "step 27: the loss is" in said.err and "for the 4th time within few steps" in said.err
    assert "going back does not help" in said.err
    monkeypatch.setenv("DUMBO_LEAPS", "")
    assert main(["train", str(file), "--resume"]) == 0
    assert metrics_of(tmp_path / "run" / "out")[-1]["train/rollbacks"] == 3, "step 27 was made again, and is fine"


def test_without_a_checkpoint_the_step_alone_is_left_out(tmp_path, model_folder, rows, monkeypatch, capfd):
    monkeypatch.setenv("DUMBO_LEAPS", "25")
    never = {"trainer.arguments.save_strategy": "no", "trainer.arguments.save_steps": builders.REMOVE}
    file = write(tmp_path / "run", model_folder, rows, never)
    assert main(["train", str(file)]) == 0
    assert "there is no checkpoint to go back to: it alone is left out" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer.faults.on_spike": "ignore", "trainer.faults.spike_factor": 2.0}, "has no effect here"),
        (
            {
                "trainer.arguments.save_strategy": "no",
                "trainer.arguments.save_steps": builders.REMOVE,
                "trainer.checkpoints.every_minutes": None,
            },
            "there are no checkpoints to go back to",
        ),
    ],
)
def test_ways_back_that_cannot_be(tmp_path, model_folder, rows, capfd, changes, message):
    file = write(tmp_path / "run", model_folder, rows, changes)
    assert main(["check", str(file)]) == 2
    assert message in capfd.readouterr().err


@pytest.mark.parametrize("steps", [{"trainer.arguments.max_steps": 20}, {"trainer.arguments.num_train_epochs": 2}])
def test_a_run_of_too_few_steps_for_a_leap_is_refused(tmp_path, model_folder, rows_file, capfd, steps):
    changes = {"trainer.arguments.max_steps": builders.REMOVE, "trainer.faults.on_spike": "rollback", **steps}
    file = builders.write_config(tmp_path, model_folder, rows_file, changes)
    assert main(["train", str(file)]) == 2
    count = steps.get("trainer.arguments.max_steps", 6)
    said = f"trainer.faults.on_spike: has no effect here: none of the first 20 steps is a leap, and the run has {count}"
    assert said in capfd.readouterr().err


def judged(losses, factor=3.0):
    """What a watch says of the last of `losses`, having found none of the others to leap."""
    watch = SpikeWatch(factor)
    *before, last = losses
    assert [told for loss in before if (told := watch.judge(loss)) is not None] == []
    return watch.judge(last)


def around(mean, spread, count=400, seed=0):
    """Losses that vary around a mean as a normal distribution does."""
    numbers = random.Random(seed)
    return [numbers.gauss(mean, spread) for _ in range(count)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("mean", "spread"), [(2.0, 0.3), (0.5, 0.5), (0.01, 1.0), (0.0, 1e-6), (-94.0, 1.0)])
def test_what_varies_as_ever_does_not_leap_and_what_is_far_above_does(mean, spread, seed):
    usual = around(mean, spread, seed=seed)
    assert judged([*usual, mean + spread]) is None
    assert judged([*usual, 3 * abs(mean) + 15 * spread]) is not None


def test_losses_below_zero_that_get_better_do_not_leap():
    assert judged([-float(step) for step in range(200)]) is None
    assert "18.6 times their usual change above the mean (-94.05) of 50 steps" in judged([*around(-94.0, 1.0), -60.0])
    assert judged([-94.0] * 30 + [-93.0]) is None, "what never varied has no size"
    assert judged([0.0] * 30 + [0.3]) is None


def test_positive_losses_are_measured_by_their_mean():
    usual = around(2.0, 0.2, count=60)
    mean = sum(usual[-50:]) / 50
    assert judged([*usual, 2.99 * mean]) is None
    assert "3.0 times the mean of 50 steps" in judged([*usual, 3.01 * mean])
    assert judged([9.0 - step * 0.3 for step in range(28)] + [1.0 * 3]) is None, "it fell fast, and the mean is high"


def test_what_is_a_leap():
    watch = SpikeWatch(2.0)
    assert all(watch.judge(1.0) is None for _ in range(LEAST - 1))
    assert watch.judge(9.0) is None, "so early nothing is one"
    assert watch.judge(2.5) is None, "the mean is 1.4"
    told = watch.judge(5.0)
    assert told is not None and "3.4 times the mean of 21 steps" in told
    again = SpikeWatch(2.0)
    again.load(watch.state())
    assert again.judge(5.0) is not None and again.in_a_row == 2
    assert all(again.judge(1.0) is None for _ in range(WINDOW))
    assert again.judge(5.0) is not None and (again.in_a_row, again.count) == (1, 3)
