"""Plugins from a file beside the configuration: one of every kind, as small as it can be, each shown to have acted."""

import json
import math
import textwrap

import pytest
import torch

from dumbo import plugin_loader as hooks
from dumbo.cli.main import main
from dumbo.plugin_interfaces import INTERFACES
from tests import builders
from tests.run.whole_runs import SHIPPED, losses_of, metrics_of, weights_of, write_and_run

MINIMAL = '''
from dumbo.plugin_loader import BasePlugin

class SmallModelPlugin(BasePlugin):
    def load_model(self, config):
        from transformers import AutoConfig, AutoModelForCausalLM
        shape = AutoConfig.from_pretrained(config.model.base_model, num_hidden_layers=1)
        return AutoModelForCausalLM.from_config(shape)

class LowerCasePlugin(BasePlugin):
    def load_tokenizer(self, config, model=None):
        from tokenizers import normalizers
        from transformers import AutoTokenizer
        assert model is not None
        tokenizer = AutoTokenizer.from_pretrained(config.model.base_model)
        tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
        return tokenizer

class MoodTokenPlugin(BasePlugin):
    def patch_tokenizer(self, tokenizer, config):
        tokenizer.add_special_tokens({"extra_special_tokens": ["<mood>"]}, replace_extra_special_tokens=False)
        return tokenizer

class ParrotPlugin(BasePlugin):
    def build_generator(self, model, tokenizer, writer):
        from dumbo.inference.generate import GREEDY, TextGenerator
        class Parrot(TextGenerator):
            def answers(self, prompts, max_new_tokens, sampling=GREEDY):
                return [list(prompt)[:max_new_tokens] for prompt in prompts]
            def stream(self, prompt, max_new_tokens, sampling, streamer):
                import torch
                for ids in (prompt, *self.answers([prompt], max_new_tokens)):
                    streamer.put(torch.tensor(ids))
                streamer.end()
                return ids
        return Parrot(model, tokenizer, writer)

class ZeroHeadPlugin(BasePlugin):
    def patch_model(self, model, config):
        model.lm_head.weight.data.zero_()
        return model

class EagerPlugin(BasePlugin):
    def load_kwargs(self, config):
        return {"attn_implementation": "eager"}

class DoubledLossPlugin(BasePlugin):
    def build_loss(self, config, tokenizer):
        from dumbo.losses.token import next_token_cross_entropy
        def loss(model, batch, num_items):
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            return 2 * next_token_cross_entropy(logits, batch["labels"]) / num_items
        return loss

class HalfTokensPlugin(BasePlugin):
    def build_token_weights(self, config):
        import torch
        return lambda logits, log_probabilities: torch.full_like(log_probabilities, 0.5)

class ShortWeightsPlugin(BasePlugin):
    def build_token_weights(self, config):
        return lambda logits, log_probabilities: log_probabilities[1:]

class FirstTokensPlugin(BasePlugin):
    def build_collator(self, config, tokenizer):
        from dumbo.data.collate import PaddingCollator
        pad = PaddingCollator(tokenizer.pad_token_id)
        return lambda rows: {name: tensor[:, :5] for name, tensor in pad(rows).items()}

class SgdPlugin(BasePlugin):
    def build_optimizer(self, model, config):
        import torch
        print("SGD over", sum(1 for p in model.parameters() if p.requires_grad), "tensors")
        return torch.optim.SGD(model.parameters(), lr=config.trainer.arguments.learning_rate)

class HalvingPlugin(BasePlugin):
    def build_scheduler(self, optimizer, total_steps, config):
        import torch
        print("a schedule of", total_steps, "steps")
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)

class EvaluatorPluginOfOurs(BasePlugin):
    def build_evaluator(self, config):
        rows = self.services.held_out()
        return lambda: {"held_out_rows": len(rows)}

class CallbacksPlugin(BasePlugin):
    def get_callbacks(self, config):
        from transformers import TrainerCallback
        class Count(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                print("callback after step", state.global_step)
                control.should_training_stop = state.global_step == 2
        return [Count()]

class ReversedPlugin(BasePlugin):
    def transform_dataset(self, dataset, config):
        return dataset.select([3, 2, 1, 0])

class NothingPlugin(BasePlugin):
    """A trainer that does not train."""
    def build_trainer(self, job):
        from dumbo.job import TrainResult
        batch_size = job.config.trainer.arguments.batch_size
        class Idle:
            def train(self):
                job.metrics.log({"train/rows": len(job.train_dataset), "train/batch": batch_size}, 1)
                return TrainResult(steps=1, total_steps=1)
            def save_model(self, folder):
                job.model.save_pretrained(folder)
        return Idle()

class NotePlugin(BasePlugin):
    def after_train(self, artifact, config):
        from dataclasses import replace
        (artifact.folder / "note.txt").write_text(f"{artifact.steps} steps")
        return replace(artifact, folder=artifact.folder / "elsewhere")

class SecondNotePlugin(BasePlugin):
    after = frozenset({"note"})
    def after_train(self, artifact, config):
        print("second note sees", artifact.folder.name, artifact.steps)
        return artifact
'''

READING = '''
from dumbo.config.schema import FormatOptions
from dumbo.config.section import Section
from dumbo.data.records import Example, Origin, Row, Text
from dumbo.plugin_loader import BasePlugin

class Countdown(Section):
    start: int = 9
    """The first number."""

class CountdownPlugin(BasePlugin):
    readers = {"countdown": Countdown}
    def read(self, options):
        for number in range(options.start, 0, -1):
            yield Row({"number": number}, Origin("countdown", number))

class WordsOptions(FormatOptions):
    word: str = "ship"
    """What is counted."""

class WordsPlugin(BasePlugin):
    data_formats = {"words": WordsOptions}
    def build_data_format(self, options):
        def convert(row):
            text = f"{row.values['number']} {options.word}"
            if row.values["number"] == 1:
                print("the last row is", text)
            return Text(text, row.origin)
        return convert

class PlainPlugin(BasePlugin):
    train_formats = {"plain": FormatOptions}
    def build_train_format(self, options, tokenizer):
        def encode(record):
            ids = tokenizer(record.text).input_ids + [tokenizer.eos_token_id]
            return Example(ids, list(ids), record.origin)
        return encode
'''


@pytest.fixture(scope="module")
def plain(tmp_path_factory, model_folder, rows_file):
    """The run that the others differ from by their plugin alone."""
    return write_and_run(tmp_path_factory.mktemp("plain"), model_folder, rows_file)


@pytest.fixture
def run_with(tmp_path, model_folder, rows_file):
    """A function that trains with plugin classes of a file beside the configuration, and returns the run's folder."""

    def run(*classes, source=MINIMAL, without=(), **changes):
        (tmp_path / "own.py").write_text(textwrap.dedent(source))
        plugins = [name for name in SHIPPED if name not in without] + [f"./own.py:{name}" for name in classes]
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        return write_and_run(tmp_path, model_folder, rows_file, {"plugins": plugins} | dotted)

    return run


def test_a_model_loader(run_with, plain):
    folder = run_with("SmallModelPlugin")
    assert json.loads((folder / "model" / "config.json").read_text())["num_hidden_layers"] == 1
    assert not any(".layers.1." in name for name in weights_of(folder / "model"))
    assert any(".layers.1." in name for name in weights_of(plain / "model"))


def test_a_tokenizer_loader(run_with):
    from transformers import AutoTokenizer

    folder = run_with("LowerCasePlugin", model__tokenizer=builders.REMOVE)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert tokenizer("ADD Three").input_ids == tokenizer("add three").input_ids


def test_a_tokenizer_patcher(run_with, plain):
    from transformers import AutoTokenizer

    folder = run_with("MoodTokenPlugin")
    ids = AutoTokenizer.from_pretrained(folder / "model")("<mood>").input_ids
    head = weights_of(folder / "model")["lm_head.weight"]
    assert len(ids) == 1 and len(head) == ids[0] + 1 == len(weights_of(plain / "model")["lm_head.weight"]) + 1


def test_a_generator(run_with, capsys):
    changes = {"evaluation__samples__prompts": ["double h e y"], "evaluation__samples__max_new_tokens": 4}
    folder = run_with("ParrotPlugin", plugins=[*SHIPPED, "samples", "./own.py:ParrotPlugin"], **changes)
    (row, *_) = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    capsys.readouterr()
    assert main(["generate", str(folder), "double h e y", "--max-new-tokens", "4"]) == 0
    assert row["output"].strip() == capsys.readouterr().out.strip() == "double"


def test_a_model_patcher(run_with, plain):
    first, second = losses_of(run_with("ZeroHeadPlugin"))
    assert first == pytest.approx(math.log(512), rel=1e-6), "a head of zeros finds every token as likely"
    assert second < first
    assert losses_of(plain)[0] != pytest.approx(math.log(512), rel=1e-6)


def test_load_options(run_with, capsys):
    run_with("EagerPlugin")
    assert "attention eager" in capsys.readouterr().out


def test_a_loss(run_with, plain):
    folder = run_with("DoubledLossPlugin")
    assert losses_of(folder)[0] == pytest.approx(2 * losses_of(plain)[0], rel=1e-6)


def test_a_loss_is_that_of_the_evaluation_too(run_with):
    folder = run_with("DoubledLossPlugin", trainer__data__val_set_size=4)
    (loss,) = losses_of(folder, "eval/loss")
    assert loss == pytest.approx(2 * math.log(512), rel=0.05)


def test_weights_of_tokens(run_with, plain):
    folder = run_with("HalfTokensPlugin")
    assert losses_of(folder)[0] == pytest.approx(losses_of(plain)[0] / 2, rel=1e-6)
    assert losses_of(folder, "train/token_weight") == pytest.approx([0.5] * len(losses_of(folder)))


def test_what_weighs_tokens_is_checked(run_with, capsys):
    with pytest.raises(AssertionError):
        run_with("ShortWeightsPlugin")
    said = capsys.readouterr().err
    assert "plugin 'short_weights': its weights of tokens are the shape [" in said and "one for each of" in said


def test_a_loss_of_its_own_takes_no_weights_of_tokens(run_with, capsys):
    with pytest.raises(AssertionError):
        run_with("HalfTokensPlugin", plugins=[*SHIPPED, "./own.py:DoubledLossPlugin", "./own.py:HalfTokensPlugin"])
    assert "the loss of 'doubled_loss' takes no such weights" in capsys.readouterr().err


def test_a_collator(run_with, plain):
    assert losses_of(run_with("FirstTokensPlugin"))[0] != losses_of(plain)[0]


def test_what_a_collator_returns_is_checked(run_with, capsys):
    source = """
    from dumbo.plugin_loader import CollatorPlugin
    class WrongPlugin(CollatorPlugin):
        def build_collator(self, config, tokenizer):
            return lambda rows: {"input_ids": [row["input_ids"] for row in rows]}
    """
    with pytest.raises(AssertionError):
        run_with("WrongPlugin", source=source)
    assert "plugin 'wrong': its collator returned a batch without 'labels'" in capsys.readouterr().err


def test_an_optimizer(run_with, plain, capsys):
    folder = run_with("SgdPlugin", trainer__arguments__learning_rate=0.25)
    assert "SGD over 21 tensors" in capsys.readouterr().out
    assert losses_of(folder)[0] == losses_of(plain)[0], "the first loss comes before the first update"
    assert losses_of(folder)[1] != losses_of(plain)[1]


def test_a_scheduler(run_with, capsys):
    folder = run_with("HalvingPlugin", trainer__arguments__max_steps=4)
    assert losses_of(folder, "train/learning_rate") == pytest.approx([1e-3, 5e-4, 2.5e-4, 1.25e-4])
    assert "a schedule of 4 steps" in capsys.readouterr().out


def test_an_evaluator(run_with, capsys):
    folder = run_with("EvaluatorPluginOfOurs", trainer__data__val_set_size=4, trainer__arguments__eval_on_start=True)
    assert losses_of(folder, "eval/held_out_rows") == [4.0, 4.0]
    assert "eval/held_out_rows 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        ("None", "its evaluator returned None; it must return name -> number"),
        ("[1.0]", "its evaluator returned a list; it must return name -> number"),
        ("{'words': 'many'}", "its evaluator returned a str for 'words'; it must be a number"),
        ("{'loss': 1.0}", "its evaluator may not return 'loss'"),
    ],
)
def test_what_an_evaluator_returns_is_checked(run_with, capsys, returned, expected):
    source = f"""
    from dumbo.plugin_loader import EvaluatorPlugin
    class WrongPlugin(EvaluatorPlugin):
        def build_evaluator(self, config):
            return lambda: {returned}
    """
    with pytest.raises(AssertionError):
        run_with("WrongPlugin", source=source, trainer__data__val_set_size=4)
    message = capsys.readouterr().err
    assert "plugin 'wrong': " + expected in message and "Traceback" not in message


def test_an_evaluator_needs_rows(run_with, capsys):
    with pytest.raises(AssertionError):
        run_with("EvaluatorPluginOfOurs")
    message = capsys.readouterr().err
    assert "measures the model on held-out rows, and there are none" in message
    assert "set trainer.data.val_set_size, or held_out: true for a source" in message


def test_callbacks(run_with, capsys):
    folder = run_with("CallbacksPlugin", trainer__arguments__max_steps=5)
    output = capsys.readouterr().out
    assert [line for line in output.splitlines() if line.startswith("callback")] == [
        "callback after step 1",
        "callback after step 2",
    ]
    assert [row["step"] for row in metrics_of(folder)] == [1, 2], "the last step is logged wherever it ends"
    assert "trained 2 of " in output and "a callback ended it" in output
    assert (folder / "model" / "model.safetensors").is_file(), "ending early is no interruption"


def test_a_dataset_changer(run_with):
    changes = {"trainer__data__shuffle": False, "trainer__arguments__batch_size": 1}
    changes |= {"trainer__arguments__physical_batch_size": 1, "trainer__arguments__learning_rate": 0.0}
    losses = losses_of(run_with("ReversedPlugin", trainer__arguments__max_steps=8, **changes))
    assert losses[:4] == losses[4:], "there are four rows left, in their order"
    assert len(set(losses[:4])) == 4


def test_a_trainer(run_with):
    folder = run_with("NothingPlugin", without=["transformers_trainer"], trainer__arguments={"batch_size": 3})
    assert metrics_of(folder) == [{"step": 1, "train/rows": 12, "train/batch": 3}]
    assert (folder / "model" / "model.safetensors").is_file()


def test_outputs(run_with, capsys):
    folder = run_with("SecondNotePlugin", "NotePlugin")
    assert (folder / "model" / "note.txt").read_text() == "2 steps"
    assert "second note sees elsewhere 2" in capsys.readouterr().out


def test_a_reader_a_data_format_and_a_train_format(run_with, capsys):
    entry = {
        "type": "countdown",
        "start": 7,
        "data_format": {"type": "words", "word": "boat"},
        "train_format": "plain",
    }
    folder = run_with(
        "CountdownPlugin",
        "WordsPlugin",
        "PlainPlugin",
        source=READING,
        without=["polars", "jinja_formatter"],
        datasets=[entry],
    )
    output = capsys.readouterr().out
    assert len(losses_of(folder)) == 2
    table = [line.split() for line in output.splitlines() if line.startswith("  ")]
    header, row = table[[line[0] for line in table].index("source") :]
    assert dict(zip(header, row, strict=True))["rows"] == "7"
    assert "the last row is 1 boat" in output


COMMAND = """
from dumbo.plugin_loader import CommandPlugin

class GreetPlugin(CommandPlugin):
    commands = {"greet": "say hello"}
    def run_command(self, verb, arguments):
        print(verb, *arguments)
        return 3
"""


def test_a_command(tmp_path, monkeypatch, capsys):
    """As an installed package brings it: by an entry point."""
    (tmp_path / "greeting_for_dumbo.py").write_text(COMMAND)
    info = tmp_path / "greeting-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: greeting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dumbo.plugins]\ngreet = greeting_for_dumbo:GreetPlugin\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["greet", "you", "--loud"]) == 3
    assert capsys.readouterr().out == "greet you --loud\n"
    assert main(["gret"]) == 2
    assert "did you mean 'dumbo greet'?" in capsys.readouterr().err


SMALLEST = """
from dumbo.plugin_loader import BasePlugin
from dumbo.metrics import MetricsCollector
class CustomMetricsPlugin(BasePlugin):
    def get_metrics_collector(self) -> MetricsCollector:
        return CustomMetricsCollector()
class CustomMetricsCollector(MetricsCollector):
    def log_metrics(self, metrics: dict, step: int):
        ...
"""


def test_the_smallest_metrics_plugin(run_with, plain):
    assert metrics_of(run_with("CustomMetricsPlugin", source=SMALLEST)) == metrics_of(plain)


TRACKERS = """
from transformers import TrainerCallback
from dumbo.plugin_loader import BasePlugin
from dumbo.metrics import MetricsCollector

class Writing(MetricsCollector):
    def open(self, run):
        self.file = (run.output_dir / "told.txt").open("w")
        print("open", run.name, run.config["trainer"]["seed"], file=self.file)
    def log_metrics(self, metrics, step):
        print(step, sorted(metrics)[-1], file=self.file)
    def close(self, outcome):
        print(outcome, file=self.file)
        self.file.close()

class Dying(MetricsCollector):
    def log_metrics(self, metrics, step):
        if step >= 2:
            raise ConnectionError("no route to the tracker")

class Closed(MetricsCollector):
    def open(self, run):
        raise PermissionError("wrong key")
    def log_metrics(self, metrics, step): ...

class WritingPlugin(BasePlugin):
    def get_metrics_collector(self):
        return Writing()

class DyingPlugin(BasePlugin):
    def get_metrics_collector(self):
        return Dying()

class ClosedPlugin(BasePlugin):
    def get_metrics_collector(self):
        return Closed()

class FailingPlugin(BasePlugin):
    def build_collator(self, config, tokenizer):
        def collate(rows):
            return give_up(rows)
        return collate

def give_up(rows):
    raise ArithmeticError("cannot collate")

class Stumbling(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        raise ArithmeticError("cannot count")

class StumblingPlugin(BasePlugin):
    def get_callbacks(self, config):
        return [Stumbling()]
"""


def test_a_metrics_collector(run_with):
    folder = run_with("WritingPlugin", source=TRACKERS)
    assert (folder / "told.txt").read_text().splitlines() == [
        "open out 7",
        "1 train/loss",
        "2 train/loss",
        "finished",
    ]


def test_a_tracker_that_dies_is_told_of_once_and_the_run_goes_on(run_with, capsys):
    folder = run_with("DyingPlugin", "WritingPlugin", source=TRACKERS, trainer__arguments__max_steps=4)
    error = capsys.readouterr().err
    assert error.count("no route to the tracker") == 1
    assert "'dying'" in error
    assert [row["step"] for row in metrics_of(folder)] == [1, 2, 3, 4]
    assert (folder / "told.txt").read_text().splitlines()[-1] == "finished"


def failing(tmp_path, model_folder, rows_file, capsys, *classes):
    (tmp_path / "own.py").write_text(TRACKERS)
    plugins = SHIPPED + [f"./own.py:{name}" for name in classes]
    file = builders.write_config(tmp_path, model_folder, rows_file, {"plugins": plugins})
    assert main([str(file)]) == 2
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    return output


def test_a_tracker_that_cannot_open_stops_the_run_before_the_model_loads(tmp_path, model_folder, rows_file, capsys):
    output = failing(tmp_path, model_folder, rows_file, capsys, "ClosedPlugin")
    assert "'closed' cannot be opened: PermissionError: wrong key" in output.err
    assert "computing in" not in output.out
    assert not (tmp_path / "out").exists(), "nothing is left of a run that did not begin"


def test_what_fails_in_training_names_its_plugin_and_the_trackers_hear_of_it(tmp_path, model_folder, rows_file, capsys):
    output = failing(tmp_path, model_folder, rows_file, capsys, "FailingPlugin", "WritingPlugin")
    assert "plugin 'failing' failed during training: ArithmeticError: cannot collate" in output.err
    assert (tmp_path / "out" / "told.txt").read_text().splitlines() == ["open out 7", "failed"]


def test_what_fails_outside_of_the_plugin_classes_names_all_plugins_of_the_file(
    tmp_path, model_folder, rows_file, capsys
):
    output = failing(tmp_path, model_folder, rows_file, capsys, "StumblingPlugin", "WritingPlugin")
    assert "plugin 'stumbling' or 'writing' failed during training: ArithmeticError: cannot count" in output.err


SERVICES = """
from dumbo.plugin_loader import BasePlugin

class AskingPlugin(BasePlugin):
    def patch_model(self, model, config):
        teacher = self.services.load_model(config.model.base_model)
        same = all(map(lambda a, b: a.equal(b), teacher.parameters(), model.parameters()))
        self.services.say(f"teacher is another {same and teacher is not model}")
        self.services.say(f"rank {self.services.rank} of {self.services.world_size}, seed {self.config.trainer.seed}")
        self.count = sum(1 for record in self.services.records())
        return model
    def after_train(self, artifact, config):
        seats = sorted(seat.__name__ for seat in self.seats)
        (self.services.output_dir / "asked.txt").write_text(f"{self.count} records, {seats}")
        return artifact
"""


def test_services_answer_a_plugin_that_declares_nothing_else(run_with, capsys):
    folder = run_with("AskingPlugin", source=SERVICES)
    lines = capsys.readouterr().out.splitlines()
    assert "teacher is another True" in lines
    assert "rank 0 of 1, seed 7" in lines
    assert (folder / "asked.txt").read_text() == "12 records, ['ModelPatcherPlugin', 'OutputPlugin']"


STATES = """
from dumbo.plugin_loader import BasePlugin

class StatePlugin(BasePlugin):
    steps = 0
    def get_callbacks(self, config):
        from transformers import TrainerCallback
        plugin = self
        class Count(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                plugin.steps += 1
        return [Count()]
    def state_dict(self):
        return {"steps": self.steps}
    def load_state_dict(self, state):
        self.steps = state["steps"]
        print("had", self.steps, "steps")
"""


def test_a_state(run_with, capsys):
    saves = {"trainer__arguments__max_steps": 3, "trainer__arguments__save_strategy": "steps"}
    folder = run_with("StatePlugin", source=STATES, trainer__arguments__save_steps=2, **saves)
    words = ["trainer.arguments.max_steps=4", "--allow-change", "trainer.arguments.max_steps"]
    checkpoint = str(folder / "checkpoints" / "step-000002")
    assert main([str(folder.parent / "run.yaml"), *words, "--resume", "--from", checkpoint]) == 0
    assert "had 2 steps" in capsys.readouterr().out


FROZEN_EMBEDDINGS = """
from dumbo.plugin_loader import LearningRatePlugin


class FrozenEmbeddingsPlugin(LearningRatePlugin):
    def learning_rate_factors(self, config):
        return {"embed_tokens": 0.0}
"""


def test_learning_rates(run_with, plain, model_folder):
    folder = run_with("FrozenEmbeddingsPlugin", source=FROZEN_EMBEDDINGS)
    name = "model.embed_tokens.weight"
    assert torch.equal(weights_of(folder / "model")[name], weights_of(model_folder)[name])
    assert not torch.equal(weights_of(plain / "model")[name], weights_of(model_folder)[name])


SHOWN = {
    hooks.ModelLoaderPlugin: test_a_model_loader,
    hooks.TokenizerLoaderPlugin: test_a_tokenizer_loader,
    hooks.TrainerPlugin: test_a_trainer,
    hooks.LossPlugin: test_a_loss,
    hooks.CollatorPlugin: test_a_collator,
    hooks.OptimizerPlugin: test_an_optimizer,
    hooks.SchedulerPlugin: test_a_scheduler,
    hooks.LearningRatePlugin: test_learning_rates,
    hooks.LoadOptionsPlugin: test_load_options,
    hooks.TokenizerPatcherPlugin: test_a_tokenizer_patcher,
    hooks.GeneratorPlugin: test_a_generator,
    hooks.ModelPatcherPlugin: test_a_model_patcher,
    hooks.ReaderPlugin: test_a_reader_a_data_format_and_a_train_format,
    hooks.DataFormatPlugin: test_a_reader_a_data_format_and_a_train_format,
    hooks.TrainFormatPlugin: test_a_reader_a_data_format_and_a_train_format,
    hooks.DatasetPlugin: test_a_dataset_changer,
    hooks.EvaluatorPlugin: test_an_evaluator,
    hooks.CallbackPlugin: test_callbacks,
    hooks.StatePlugin: test_a_state,
    hooks.TokenWeightPlugin: test_weights_of_tokens,
    hooks.LoggingPlugin: test_a_metrics_collector,
    hooks.OutputPlugin: test_outputs,
    hooks.CommandPlugin: test_a_command,
}


def test_every_kind_of_plugin_is_shown_here():
    assert set(SHOWN) == {interface.type for interface in INTERFACES}
