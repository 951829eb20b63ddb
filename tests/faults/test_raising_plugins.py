"""What plugins hand to a run raises in the middle of it: they are named with file and line, and the run closes.

That hooks themselves raise is in tests/run/test_bad_input.py.
"""

import json

import pytest

from tests import builders
from tests.run.whole_runs import SHIPPED, metrics_of, printed_by, weights_of

RAISING = """
import torch
from transformers import TrainerCallback
from dumbo.config.schema import FormatOptions
from dumbo.config.section import Section
from dumbo.data.collate import PaddingCollator
from dumbo.data.records import Example, Origin, Row, Text
from dumbo.losses.token import next_token_cross_entropy
from dumbo.metrics import MetricsCollector
from dumbo.plugin_loader import BasePlugin

calls = [0]

def fail(count):
    calls[0] += 1
    if calls[0] == count:
        raise KeyError("x")

class LossPlugin(BasePlugin):
    def build_loss(self, config, tokenizer):
        def loss(model, batch, num_items):
            fail(4)
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            return next_token_cross_entropy(logits, batch["labels"]) / num_items
        return loss

class CollatorPlugin(BasePlugin):
    def build_collator(self, config, tokenizer):
        pad = PaddingCollator(tokenizer.pad_token_id)
        def collate(rows):
            fail(4)
            return pad(rows)
        return collate

class OptimizerPlugin(BasePlugin):
    def build_optimizer(self, model, config):
        class Failing(torch.optim.SGD):
            def step(self, closure=None):
                fail(2)
                return super().step(closure)
        return Failing(model.parameters(), lr=config.trainer.arguments.learning_rate)

class SchedulerPlugin(BasePlugin):
    def build_scheduler(self, optimizer, total_steps, config):
        def rate(step):
            if step == 2:
                raise KeyError("x")
            return 1.0
        return torch.optim.lr_scheduler.LambdaLR(optimizer, rate)

class PatcherPlugin(BasePlugin):
    def patch_model(self, model, config):
        model.register_forward_hook(lambda module, inputs, output: fail(4))
        return model

class EvaluatorPlugin(BasePlugin):
    def build_evaluator(self, config):
        def evaluate():
            fail(2)
            return {"ones": 1.0}
        return evaluate

class CountdownPlugin(BasePlugin):
    readers = {"countdown": Section}
    def read(self, options):
        for number in range(600):
            if number == 580:
                raise KeyError("x")
            yield Row({"text": f"row number {number}"}, Origin("countdown", number + 1))

class FormatPlugin(BasePlugin):
    readers = {"countdown": Section}
    data_formats = {"words": FormatOptions}
    def read(self, options):
        for number in range(600):
            yield Row({"text": f"row number {number}"}, Origin("countdown", number + 1))
    def build_data_format(self, options):
        def convert(row):
            if row.origin.row == 580:
                raise KeyError("x")
            return Text(row.values["text"], row.origin)
        return convert

class EncoderPlugin(BasePlugin):
    readers = {"countdown": Section}
    train_formats = {"words": FormatOptions}
    def read(self, options):
        for number in range(600):
            yield Row({"text": f"row number {number}"}, Origin("countdown", number + 1))
    def build_train_format(self, options, tokenizer):
        def encode(record):
            if record.origin.row == 580:
                raise KeyError("x")
            ids = tokenizer(record.text).input_ids
            return Example(ids, list(ids), record.origin)
        return encode

class Raising(TrainerCallback):
    pass

class CallbackPlugin(BasePlugin):
    def get_callbacks(self, config):
        def raising(self, args, state, control, **kwargs):
            if state.global_step >= 1 or "begin" in EVENT or EVENT == "on_pre_optimizer_step":
                fail(1)
        return [type("Mine", (Raising,), {EVENT: raising})()]

class TrackerPlugin(BasePlugin, MetricsCollector):
    def get_metrics_collector(self):
        return self
    def log_metrics(self, metrics, step):
        fail(2)

class WitnessPlugin(BasePlugin, MetricsCollector):
    def get_metrics_collector(self):
        return self
    def log_metrics(self, metrics, step):
        pass
    def close(self, outcome):
        print("witness:", outcome)
"""
EVENTS = (
    "on_train_begin",
    "on_step_begin",
    "on_substep_end",
    "on_pre_optimizer_step",
    "on_step_end",
    "on_log",
    "on_evaluate",
    "on_save",
    "on_epoch_end",
    "on_train_end",
)
STREAM = {
    "trainer.data": {"sequence_length": 64, "streaming": True, "shuffle_buffer": 20},
    "datasets.0": {"type": "countdown", "data_format": "completion", "train_format": "completion"},
    "trainer.arguments.max_steps": 200,
    "trainer.arguments.logging_steps": 5,
}
STREAMED = {
    "CountdownPlugin": STREAM,
    "FormatPlugin": {**STREAM, "datasets.0.data_format": "words"},
    "EncoderPlugin": {**STREAM, "datasets.0.train_format": "words"},
}
SHORT = ("FormatPlugin",)


@pytest.fixture
def run(tmp_path, model_folder, rows_file, capsys):
    """Trains with a plugin that raises; returns what was printed, and what was said against it."""

    def train(code, name, event="", changes=None):
        (tmp_path / "own.py").write_text(f"EVENT = {event!r}\n{RAISING}")
        plugins = [*SHIPPED, "text_formatter", "./own.py:WitnessPlugin", f"./own.py:{name}"]
        base = {"trainer.arguments.max_steps": 4, "plugins": plugins}
        file = builders.write_config(tmp_path, model_folder, rows_file, base | (changes or {}))
        printed = printed_by(capsys, code, "train", str(file))
        train.file, train.folder = tmp_path / "own.py", tmp_path / "out"
        return printed

    return train


def assert_closed(run, printed):
    """Trackers are closed, and what there was of the run is told and kept."""
    assert printed.out.count("witness: failed") == 1
    facts = json.loads((run.folder / "summary.json").read_text())
    assert facts["outcome"] == "failed" and facts["error"] == printed.err.strip()
    assert metrics_of(run.folder)[-1]["step"] >= 1
    assert (run.folder / "report.html").exists()


EVALUATED = {"trainer.data.val_set_size": 2, "trainer.arguments.eval_on_start": True}
MIDWAY = ("LossPlugin", "CollatorPlugin", "OptimizerPlugin", "SchedulerPlugin", "PatcherPlugin", "EvaluatorPlugin")


@pytest.mark.parametrize("name", MIDWAY)
def test_what_a_hook_returned_raises_in_the_second_step(run, name):
    printed = run(2, name, changes=EVALUATED if name == "EvaluatorPlugin" else None)
    plugin = name.removesuffix("Plugin").lower()
    line = 1 + next(
        number
        for number, text in enumerate(run.file.read_text().splitlines())
        if 'raise KeyError("x")' in text and (name == "SchedulerPlugin") == ("    " * 4 in text)
    )
    assert printed.err == f"plugin '{plugin}' failed during training: KeyError: 'x' ({run.file}:{line})\n"
    assert_closed(run, printed)


@pytest.mark.parametrize("event", builders.thinned(EVENTS, 3))
def test_a_callback_that_raises_at_each_event(run, event):
    saving = {"trainer.arguments.save_strategy": "steps", "trainer.arguments.save_steps": 1}
    printed = run(2, "CallbackPlugin", event, changes=EVALUATED | saving | {"trainer.arguments.max_steps": 3})
    assert printed.err.startswith(f"plugin 'callback' failed during training: KeyError: 'x' ({run.file}:")
    assert printed.out.count("witness: failed") == 1


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SHORT else pytest.mark.full) for name in STREAMED]
)
def test_a_reader_or_format_that_raises_far_into_a_stream(run, name):
    printed = run(2, name, changes=STREAMED[name])
    hook = {"CountdownPlugin": "read", "FormatPlugin": "data_format", "EncoderPlugin": "train_format"}[name]
    assert printed.err.startswith(f"plugin '{name.removesuffix('Plugin').lower()}' ")
    assert hook in printed.err and f"KeyError: 'x' ({run.file}:" in printed.err and len(printed.err.splitlines()) <= 3
    assert "stopped after step" in printed.out
    assert_closed(run, printed)
    (checkpoint,) = (run.folder / "checkpoints").iterdir()
    assert weights_of(checkpoint), "the steps before are kept"


def test_a_tracker_that_raises_is_dropped_and_the_run_goes_on(run):
    printed = run(0, "TrackerPlugin")
    assert printed.err.count("'tracker' failed in log_metrics and gets no more metrics: KeyError: 'x' (") == 1
    assert printed.out.count("witness: finished") == 1
    assert metrics_of(run.folder)[-1]["step"] == 4
