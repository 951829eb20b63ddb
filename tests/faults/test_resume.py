"""A run that was stopped and goes on ends with the weights and metrics of the run that never stopped, bit by bit."""

import json

import pytest

from dumbo.cli.main import main
from tests import builders
from tests.faults.stopping import (
    assert_same_run,
    checkpoints_in,
    stop_by,
    weights_in,
    write_stoppable,
)

AVERAGE = '''
import torch

from dumbo.plugin_loader import CallbackPlugin, StatePlugin


class AveragePlugin(CallbackPlugin, StatePlugin):
    """Adds a moving average of the gradients to them: what comes next depends on all that came before."""

    name = "average"

    def __init__(self):
        self.averages = {}

    def get_callbacks(self, config):
        from transformers import TrainerCallback

        plugin = self

        class Average(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, model=None, **more):
                for name, parameter in model.named_parameters():
                    before = plugin.averages.get(name, torch.zeros_like(parameter))
                    plugin.averages[name] = 0.9 * before + 0.1 * parameter.grad
                    parameter.grad += plugin.averages[name] + 0.01 * torch.randn_like(parameter)

        return [Average()]

    def state_dict(self):
        return {"averages": self.averages}

    def load_state_dict(self, state):
        self.averages = state["averages"]
'''

POISON = '''
from dumbo.losses.token import next_token_cross_entropy
from dumbo.plugin_loader import CallbackPlugin, LossPlugin


class PoisonPlugin(CallbackPlugin, LossPlugin):
    """Steps 3, 6 and 7 have a loss that is not a number."""

    name = "poison"
    bad = False

    def get_callbacks(self, config):
        from transformers import TrainerCallback

        plugin = self

        class Poison(TrainerCallback):
            def on_step_begin(self, args, state, control, **more):
                plugin.bad = state.global_step + 1 in (3, 6, 7)

        return [Poison()]

    def build_loss(self, config, tokenizer):
        def loss(model, batch, num_items):
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            share = next_token_cross_entropy(model(**inputs).logits, batch["labels"]) / num_items
            return share * float("nan") if self.bad and model.training else share

        return loss
'''

BY_STEPS = {"trainer.arguments.eval_strategy": "steps", "trainer.arguments.eval_steps": 3}
HASTY = {"trainer.arguments.learning_rate": 0.05, "trainer.arguments.eval_strategy": "steps"}
STREAMED = {
    "trainer.data.streaming": True,
    "trainer.data.sequence_length": 200,
    "trainer.data.val_set_size": 0,
    "trainer.data.packing": True,
    "trainer.data.shuffle_buffer": 10,
    "trainer.arguments.max_steps": 12,
    "trainer.arguments.num_train_epochs": builders.REMOVE,
    "trainer.arguments.eval_strategy": builders.REMOVE,
}

SCENARIOS = {
    "within an epoch": ({}, (), "SIGTERM", 7),
    "packed": ({"trainer.data.packing": True, "trainer.data.sequence_length": 200}, (), "SIGTERM", 3),
    "an adapter with dropout": (
        {"model.peft.rank": 4, "model.peft.dropout": 0.2, "trainer.data.group_by_length": True},
        ("peft",),
        "SIGTERM",
        7,
    ),
    "a stream": (STREAMED, (), "SIGTERM", 5),
    "without logits": (
        {"model.cut_cross_entropy": {"token_metrics": True}, "trainer.arguments.logging_steps": 3},
        ("cut_cross_entropy", "eaft"),
        "SIGTERM",
        8,
    ),
}
LONG = {
    "the best weights": (
        {
            **HASTY,
            "trainer.arguments.eval_steps": 2,
            "trainer.arguments.load_best_model_at_end": True,
            "trainer.arguments.save_strategy": "steps",
            "trainer.arguments.save_steps": 3,
        },
        (),
        "SIGTERM",
        8,
    ),
    "steps that were skipped": ({"trainer.arguments.logging_steps": 1}, ("./poison.py:PoisonPlugin",), "SIGTERM", 6),
    "early stopping": (
        {**HASTY, "trainer.arguments.eval_steps": 2, "trainer.early_stopping.patience": 2},
        ("early_stopping",),
        "SIGTERM",
        5,
    ),
    "the last step": (
        {
            **HASTY,
            "trainer.arguments.eval_steps": 3,
            "trainer.arguments.load_best_model_at_end": True,
            "trainer.arguments.save_strategy": "epoch",
        },
        (),
        "SIGINT",
        18,
    ),
    "a plugin with a state": ({}, ("./average.py:AveragePlugin",), "SIGTERM", 10),
    "by the user": ({"trainer.arguments.save_strategy": "epoch"}, (), "SIGINT", 8),
    "when an evaluation is due": (BY_STEPS, (), "SIGTERM", 6),
    "at the end of an epoch": ({}, (), "SIGTERM", 6),
    "a stream of joined rows": ({**STREAMED, "trainer.data.packing": "joined"}, (), "SIGTERM", 7),
    "joined rows": ({"trainer.data.packing": "joined", "trainer.data.sequence_length": 50}, (), "SIGTERM", 4),
    "half precision": ({"trainer.arguments.bf16": True}, (), "SIGTERM", 5),
    "weights in bfloat16": ({"model.dtype": "bfloat16"}, (), "SIGTERM", 5),
    "another optimizer": ({"trainer.arguments.optim": "adafactor"}, (), "SIGTERM", 5),
    "another schedule": ({"trainer.arguments.lr_scheduler_type": "cosine"}, (), "SIGTERM", 5),
    "the first step": ({}, (), "SIGTERM", 1),
    "the last step but one": ({}, (), "SIGTERM", 17),
    "checkpointed activations": ({"trainer.arguments.gradient_checkpointing": True}, (), "SIGTERM", 5),
    "samples": ({"evaluation.samples.prompts": ["Add 1 and 2."], **BY_STEPS}, ("samples",), "SIGTERM", 6),
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return builders.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", builders.alpaca_rows(26))


@pytest.fixture(scope="module")
def dropping_model(tmp_path_factory, tokenizer):
    """A model with dropout: its numbers must go on, too."""
    return builders.save_tiny_model(tmp_path_factory.mktemp("model") / "tiny", tokenizer, attention_dropout=0.1)


def write(folder, model, rows, changes, plugins):
    file = write_stoppable(folder, model, rows, changes, plugins)
    (folder / "average.py").write_text(AVERAGE)
    (folder / "poison.py").write_text(POISON)
    return file


@pytest.mark.parametrize("name", [*SCENARIOS, *(pytest.param(name, marks=pytest.mark.full) for name in LONG)])
def test_goes_on_as_if_it_had_never_stopped(tmp_path, dropping_model, rows, name, capfd):
    changes, plugins, signal_name, step = (SCENARIOS | LONG)[name]
    whole = write(tmp_path / "whole", dropping_model, rows, changes, plugins)
    assert main(["train", str(whole)]) == 0
    stopped = write(tmp_path / "stopped", dropping_model, rows, changes, plugins)
    out = stopped.parent / "out"
    with stop_by(signal_name, step):
        assert main(["train", str(stopped)]) == {"SIGTERM": 75, "SIGINT": 130}[signal_name]
    assert f"step-{step:06}" in checkpoints_in(out)
    said = capfd.readouterr().err
    assert f"stopped after step {step} of" in said
    assert f"to go on: dumbo train {stopped} --resume" in said
    assert main(["train", str(stopped), "--resume"]) == 0
    assert f"going on with {out} after step {step} (step-{step:06})" in capfd.readouterr().out
    assert_same_run(out, whole.parent / "out")
    assert checkpoints_in(out) == checkpoints_in(whole.parent / "out")


@pytest.mark.full
def test_can_be_stopped_at_every_step(tmp_path, dropping_model, rows):
    """Eighteen processes' worth of steps, one at a time."""
    whole = write(tmp_path / "whole", dropping_model, rows, {}, ())
    assert main(["train", str(whole)]) == 0
    stopped = write(tmp_path / "stopped", dropping_model, rows, {}, ())
    for step in range(1, 19):
        with stop_by("SIGTERM", step):
            assert main(["train", str(stopped), "--resume"]) == 75
    assert main(["train", str(stopped), "--resume"]) == 0
    assert_same_run(stopped.parent / "out", whole.parent / "out")


def test_nothing_to_go_on_with(tmp_path, dropping_model, rows, capfd):
    file = write(tmp_path / "run", dropping_model, rows, {"trainer.arguments.max_steps": 2}, ())
    assert main(["train", str(file), "--resume"]) == 0
    assert "this configuration has no run yet: a new one begins" in capfd.readouterr().out
    assert main(["train", str(file), "--resume"]) == 0, "a job script may say it always"
    said = capfd.readouterr().err
    assert f"the run in {file.parent / 'out'} is finished" in said
    assert f"start a new run in another folder, with model.base_model: {file.parent / 'out' / 'model'}" in said
    longer = ["trainer.arguments.max_steps=4", "--allow-change", "trainer.arguments.max_steps"]
    assert main(["train", str(file), "--resume", *longer]) == 2, "asked for, and not possible"
    assert "is finished and kept no checkpoint to train on from" in capfd.readouterr().err
    assert main(["train", str(file), "--resume", "--allow-change", "trainer.nonsense"]) == 2
    assert "--allow-change trainer.nonsense: there is no such key" in capfd.readouterr().err
    assert main(["train", str(file), "--resume", "--from", str(tmp_path / "none")]) == 2
    assert "neither the folder of a run nor one of its checkpoints" in capfd.readouterr().err
    assert main(["train", str(file), "--allow-change", "trainer.seed"]) == 2
    assert "--allow-change needs --resume" in capfd.readouterr().err


def test_a_changed_configuration(tmp_path, dropping_model, rows, capfd):
    """Harmless changes pass, others are named with what to write, and some are impossible."""
    file = write(tmp_path / "run", dropping_model, rows, {}, ())
    out = file.parent / "out"
    with stop_by("SIGTERM", 3):
        assert main(["train", str(file)]) == 75
    capfd.readouterr()
    assert main(["train", str(file), "--resume", "trainer.arguments.learning_rate=0.01", "trainer.seed=8"]) == 2
    said = capfd.readouterr().err
    assert "trainer.arguments.learning_rate: was 0.001 in the checkpoint, and is 0.01 now" in said
    assert "add --allow-change trainer.arguments.learning_rate" in said
    assert "trainer.seed: was 7 in the checkpoint, and is 8 now: what the checkpoint holds does not fit" in said
    assert main(["train", str(file), "--resume", "--allow-change", "learning_rate"]) == 2
    assert "did you mean 'trainer.arguments.learning_rate'?" in capfd.readouterr().err
    allowed = ["--allow-change", "trainer.arguments.learning_rate"]
    words = ["trainer.arguments.learning_rate=0.01", "trainer.arguments.logging_steps=1", *allowed]
    assert main(["train", str(file), "--resume", *words]) == 0
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rates = {row["step"]: row["train/learning_rate"] for row in logged if "train/learning_rate" in row}
    assert rates[1] == pytest.approx(0.001)  # of the linear schedule over 18 steps, from the old rate and the new one
    assert rates[4] == pytest.approx(0.01 * 15 / 18)
    assert list(rates) == [1, *range(4, 19)]


def test_more_epochs_after_the_end(tmp_path, dropping_model, rows):
    """A finished run with a checkpoint trains on for longer, where that is allowed."""
    saves = {"trainer.arguments.save_strategy": "epoch"}
    file = write(tmp_path / "run", dropping_model, rows, saves, ())
    assert main(["train", str(file)]) == 0
    longer = ["trainer.arguments.num_train_epochs=4", "--allow-change", "trainer.arguments.num_train_epochs"]
    before = weights_in(file.parent / "out" / "model")
    assert main(["train", str(file), "--resume", *longer]) == 0
    steps = [json.loads(line)["step"] for line in (file.parent / "out" / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] == 24
    after = weights_in(file.parent / "out" / "model")
    assert any(not (before[name] == after[name]).all() for name in before)


def test_changed_rows(tmp_path, dropping_model, capfd):
    """Rows that changed in their file are seen, a file that moved is not a change."""
    rows = builders.write_rows(tmp_path / "rows.jsonl", builders.alpaca_rows(26))
    file = write(tmp_path / "run", dropping_model, rows, {}, ())
    with stop_by("SIGTERM", 3):
        assert main(["train", str(file)]) == 75
    text = rows.read_text()
    rows.write_text(text.replace("The sum is 5", "The sum is 6"))
    capfd.readouterr()
    assert main(["train", str(file), "--resume"]) == 2
    said = capfd.readouterr().err
    assert "the rows are not those of the checkpoint" in said and "--allow-change datasets" in said
    moved = tmp_path / "moved.jsonl"
    moved.write_text(text)
    with stop_by("SIGTERM", 5):
        assert main(["train", str(file), "--resume", f"datasets.0.path={moved}"]) == 75
    assert main(["train", str(file), "--resume", "--allow-change", "datasets"]) == 0


def test_a_checkpoint_on_demand(tmp_path, dropping_model, rows):
    """SIGUSR1 and a file named `save` ask for one; both are kept when the run ends well."""
    file = write(tmp_path / "run", dropping_model, rows, {}, ())
    out = file.parent / "out"
    with stop_by("SIGUSR1", 4):
        assert main(["train", str(file)]) == 0
    assert checkpoints_in(out) == ["step-000004"]
    other = write(tmp_path / "other", dropping_model, rows, {}, ())
    (other.parent / "out").mkdir()
    (other.parent / "out" / "save").touch()
    assert main(["train", str(other)]) == 0
    assert checkpoints_in(other.parent / "out") == ["step-000001"]
    assert not (other.parent / "out" / "save").exists()


def test_checkpoints_by_the_clock(tmp_path, dropping_model, rows, capfd):
    """They serve to go on from, and are removed when the run ends well; two are kept on the way."""
    clock = {"trainer.checkpoints.every_minutes": 1e-9}
    file = write(tmp_path / "run", dropping_model, rows, clock, ())
    with stop_by("SIGTERM", 5):
        assert main(["train", str(file)]) == 75
    assert checkpoints_in(file.parent / "out") == ["step-000004", "step-000005"]
    assert main(["train", str(file), "--resume"]) == 0
    assert checkpoints_in(file.parent / "out") == []
