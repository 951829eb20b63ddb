"""Each kind of mistake in a configuration: what is said, where, and what to write instead."""

from pathlib import Path

import pytest
import yaml

from dumbo.configure import configure
from dumbo.errors import ConfigError
from dumbo.launch import Launch
from tests import builders

USUAL = "usual is: plugins: [transformers, transformers_trainer, polars, jinja_formatter]"
TWO_PLUGINS = '''\
from dumbo.config.section import Section
from dumbo.plugin_loader import DatasetPlugin


class Options(Section):
    """Options."""

    every: int = 1
    """How often."""


class ZPlugin(DatasetPlugin):
    """Z."""

    section, options_type = "trainer.zloss", Options

    def transform_dataset(self, dataset, config):
        return dataset


class OtherPlugin(DatasetPlugin):
    """Another."""

    def transform_dataset(self, dataset, config):
        return dataset
'''


@pytest.fixture
def complaints(tmp_path, model_folder, rows_file):
    """From changes to a good configuration to what is said about it, without the file's folder."""

    def complain(changes, overrides=(), files=()):
        file = builders.write_config(tmp_path, model_folder, rows_file, changes)
        for name, text in files:
            (tmp_path / name).write_text(text)
        with pytest.raises(ConfigError) as caught:
            configure(file, overrides, Launch())
        return str(caught.value).replace(f"{tmp_path}/", "")

    return complain


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # unknown keys
        ({"modle": {}}, "modle: unknown option\n    did you mean 'model'?"),
        ({"trainer.seeed": 1}, "trainer.seeed: unknown option\n    did you mean 'seed'?"),
        ({"trainer.arguments.seed": 1}, "trainer.arguments.seed: unknown option\n    it belongs in 'trainer'"),
        ({"trainer.batch_size": 1}, "trainer.batch_size: unknown option\n    it belongs in 'trainer.arguments'"),
        ({"trainer.datasets": 1}, "trainer.datasets: unknown option\n    it belongs in 'the top level'"),
        ({"trainer.lr": 1}, "trainer.lr: unknown option\n    write trainer.arguments.learning_rate"),
        ({"trainer.learning_rte": 1}, "unknown option\n    did you mean 'trainer.arguments.learning_rate'?"),
        ({"trainer.zzz": 1}, "trainer.zzz: unknown option\n    trainer takes: arguments, data, checkpoints"),
        ({"trainer.arguments.zzz": 1}, "'dumbo explain trainer.arguments' lists the "),
        ({"zzz": 1}, "zzz: unknown option\n    the top level takes: model, datasets, trainer, plugins, evaluation"),
        ({"datasets.0.zzz": 1}, "datasets.0.zzz: unknown option\n    'dumbo explain datasets' lists the 14 options"),
        ({"datasets.0.train_format.tmplate": 1}, "train_format.tmplate: unknown option\n    did you mean 'template'?"),
        # types and ranges
        (
            {"trainer.arguments.learning_rate": "fast"},
            "trainer.arguments.learning_rate: expected a number of at least 0, got 'fast' (a text)",
        ),
        (
            {"trainer.arguments.batch_size": "8"},
            "expected a whole number of at least 1, got '8' (a text)\n    write it without quotes: 8",
        ),
        ({"trainer.arguments.batch_size": 0}, "expected a whole number of at least 1, got 0 (a whole number)"),
        ({"trainer.arguments.batch_size": 1.5}, "expected a whole number of at least 1, got 1.5 (a number)"),
        ({"trainer.arguments.batch_size": True}, "expected a whole number of at least 1, got true (true or false)"),
        ({"trainer.arguments.batch_size": None}, "expected a whole number of at least 1, got nothing"),
        ({"trainer.arguments.learning_rate": float("nan")}, "expected a number of at least 0, got nan (a number)"),
        ({"trainer.arguments.adam_beta1": 1}, "expected a number of at least 0 and below 1, got 1 (a whole number)"),
        ({"trainer.arguments.save_strategy": "step"}, "expected one of no, steps, epoch, got 'step' (a text)\n    did"),
        ({"trainer.data.shuffle": "yes"}, "trainer.data.shuffle: expected true or false, got 'yes' (a text)"),
        ({"trainer.seed": [1]}, "trainer.seed: expected a whole number of at least 0 and below 4294967296, got a list"),
        ({"trainer.arguments": 3}, "trainer.arguments: expected a mapping, got 3 (a whole number)"),
        ({"model.config_overrides": [1]}, "model.config_overrides: expected a mapping, got a list"),
        ({"model.tokenizer.tokens": "a"}, "model.tokenizer.tokens: expected a list, each a text, got 'a' (a text)"),
        ({"model.tokenizer.tokens": ["a", 3]}, "model.tokenizer.tokens.1: expected a text, got 3 (a whole number)"),
        ({"datasets": {"path": "x"}}, "datasets: expected a list, each a mapping, got a mapping"),
        ({"datasets": []}, "datasets: needs at least one entry"),
        ({"datasets": builders.REMOVE}, "run.yaml:1:1: datasets: is missing\n    Where the rows come from"),
        ({"plugins": builders.REMOVE}, f"run.yaml:1:1: plugins: is missing\n    {USUAL}"),
        ({"plugins": []}, f"plugins: needs at least one entry\n    {USUAL}"),
        # keys and types of other tools
        ({"trainer.arguments.per_device_train_batch_size": 1}, "unknown option\n    write physical_batch_size"),
        ({"trainer.arguments.micro_batch_size": 1}, "unknown option\n    write physical_batch_size"),
        ({"trainer.arguments.num_epochs": 1}, "unknown option\n    write trainer.arguments.num_train_epochs"),
        ({"trainer.arguments.lr_scheduler": "x"}, "unknown option\n    write trainer.arguments.lr_scheduler_type"),
        ({"trainer.arguments.optimizer": "x"}, "unknown option\n    write trainer.arguments.optim"),
        ({"datasets.0.ds_type": "json"}, "datasets.0.ds_type: unknown option\n    write format"),
        ({"model.name": "x"}, "model.name: unknown option\n    write model.base_model"),
        ({"special_tokens": {"pad_token": "x"}}, "unknown option\n    write model.tokenizer.pad_token, eos_token"),
        ({"special_tokens": ["x"]}, "unknown option\n    it belongs in 'model.tokenizer'"),
        ({"model.tokenizer.special_tokens": {"pad_token": "x"}}, "got a mapping\n    write model.tokenizer.pad_token"),
        ({"datasets.0.type": "alpaca"}, "no reader is called 'alpaca'\n    'alpaca' is a data_format here"),
        (
            {"datasets.0.type": "sharegpt"},
            "no reader is called 'sharegpt'\n    write data_format: messages, which reads",
        ),
        (
            {"datasets.0.type": {"system_prompt": "", "format": "{instruction}"}},
            "datasets.0.type: expected the name of a reader, got a mapping\n    type names the reader; formats of",
        ),
        ({"datasets.0.chat_template": "llama3"}, "unknown option\n    write train_format: {type: chat_template, chat_"),
        ({"datasets.0.type": "context_qa.load_v2"}, "'context_qa.load_v2'\n    write data_format: context_qa_v2"),
        ({"datasets.0.data_format": "chat_template"}, "'chat_template'\n    'chat_template' is a train_format here"),
        # what to write
        ({"trainer.data.shuffle": "off"}, "got 'off' (a text)\n    write false"),
        ({"trainer.arguments.bf16": "yes"}, "got 'yes' (a text)\n    write true"),
        ({"trainer.arguments.bf16": "true"}, "got 'true' (a text)\n    write it without quotes: true"),
        ({"trainer.arguments.learning_rate": "1e-3,"}, "got '1e-3,' (a text)\n    remove the comma: 1e-3"),
        ({"trainer.arguments.max_steps": "1_000"}, "got '1_000' (a text)\n    write 1000"),
        ({"trainer.arguments.batch_size": 4.0}, "got 4.0 (a number)\n    write 4"),
        ({"plugins": "transformers"}, "got 'transformers' (a text)\n    write plugins: [transformers]"),
        ({"model.tokenizer": "gpt2"}, "got 'gpt2' (a text)\n    write tokenizer: {path: gpt2}"),
        ({"model": "gpt2"}, "got 'gpt2' (a text)\n    write model: {base_model: gpt2}"),
        ({"trainer.arguments": "batch_size:8"}, "got 'batch_size:8' (a text)\n    write a space after ':'"),
        ({"datasets": {"path": "x"}}, "got a mapping\n    put '- ' before its first key"),
        # types of readers and formats
        ({"datasets.0.path": builders.REMOVE}, "datasets.0.path: is missing\n    File, folder, glob"),
        (
            {"datasets.0.train_format.template": builders.REMOVE},
            "datasets.0.train_format.template: is missing\n    Jin",
        ),
        (
            {"datasets.0.type": builders.REMOVE},
            "datasets.0: a reader needs a 'type'\n    known are: huggingface_polars",
        ),
        (
            {"datasets.0.type": "hugingface_polars"},
            "no reader is called 'hugingface_polars'\n    did you mean 'huggingf",
        ),
        ({"datasets.0.type": 3}, "datasets.0.type: no reader is called '3'"),
        ({"datasets.0.data_format": "alpacca"}, "datasets.0.data_format: no data format is called 'alpacca'\n    did"),
        (
            {"datasets.0.data_format": {"type": "zzz"}},
            "datasets.0.data_format.type: no data format is called 'zzz'\n    k",
        ),
        (
            {"datasets.0.data_format": 3},
            "datasets.0.data_format: expected the name of a data format, or a mapping with",
        ),
        ({"datasets.0.data_format": {}}, "datasets.0.data_format: a data format needs a 'type'"),
        ({"datasets.0": [1]}, "datasets.0: expected the name of a reader, or a mapping with 'type'"),
        # what validators of options say
        ({"datasets.0.train_format.template": "{% if %}"}, "datasets.0.train_format.template: "),
    ],
    ids=lambda value: str(value)[:60],
)
def test_each_kind_of_mistake(complaints, changes, expected):
    said = complaints(changes)
    assert expected in said
    assert said.startswith("run.yaml:"), "the place is named first"


def test_the_line_and_column_are_those_of_the_key(tmp_path, model_folder, rows_file):
    file = builders.write_config(tmp_path, model_folder, rows_file, {"trainer.arguments.learning_rte": 1})
    numbered = {line.strip(): number for number, line in enumerate(file.read_text().splitlines(), 1)}
    with pytest.raises(ConfigError) as caught:
        configure(file, (), Launch())
    line = numbered["learning_rte: 1"]
    assert str(caught.value).startswith(f"{file}:{line}:5: trainer.arguments.learning_rte: ")


def test_all_mistakes_come_at_once_in_the_order_of_the_file(tmp_path):
    text = """\
extends: base.yaml
plugins: [transformers, transformers_trainer, jinja_formatter, polars, nobody]
trainer:
  arguments:
    learning_rte: 1
    batch_size: 3.5
    batch_size: 4
model: {base_model: x, dtype: float23, tokenizer: {pad: x}}
"""
    base = "datasets:\n  - {type: huggingface_polars, data_format: zzz, train_format: chat_template}\nevaluation: 3\n"
    (tmp_path / "run.yaml").write_text(text)
    (tmp_path / "base.yaml").write_text(base)
    with pytest.raises(ConfigError) as caught:
        configure(tmp_path / "run.yaml", ["trainer.seed=x", "nonsense"], Launch())
    places = [str(problem).split(": ")[:2] for problem in caught.value.problems]
    assert [(place.replace(f"{tmp_path}/", ""), key) for place, key in places] == [
        ("run.yaml:2:72", "plugins.4"),
        ("run.yaml:5:5", "trainer.arguments.learning_rte"),
        ("run.yaml:7:5", "trainer.arguments.batch_size"),
        ("run.yaml:8:24", "model.dtype"),
        ("run.yaml:8:52", "model.tokenizer.pad"),
        ("base.yaml:2:5", "datasets.0.path"),
        ("base.yaml:3:1", "evaluation"),
        ("command line", "'nonsense' is not an override\n    write section.key=value"),
        ("command line", "trainer.seed"),
    ]


def test_a_section_or_type_of_an_unlisted_plugin_names_the_plugin_and_is_checked_all_the_same(complaints):
    said = complaints(
        {
            "plugins": ["transformers", "transformers_trainer", "polars"],
            "datasets.0.data_format": {"type": "alpaca", "field_inptu": "x"},
        }
    )
    assert said.count("add 'jinja_formatter' under plugins:") == 2
    assert "data_format.type: this needs the plugin 'jinja_formatter', which is not listed" in said
    assert "did you mean 'field_input'?" in said


@pytest.mark.parametrize("plugins", [builders.REMOVE, [], None, "transformers"])
def test_without_a_list_of_plugins_no_key_is_said_to_need_one(complaints, plugins):
    assert "this needs the plugin" not in complaints({"plugins": plugins})


def test_a_misspelled_plugin_is_not_said_to_be_missing_too(complaints):
    said = complaints({"plugins": ["transformers", "transformers_trainer", "polar", "jinja_formatter"]})
    assert "no plugin is called 'polar'" in said
    assert "this needs the plugin" not in said


def test_another_plugin_in_the_file_of_a_listed_one_is_named(complaints):
    plugins = ["transformers", "transformers_trainer", "polars", "jinja_formatter", "./mine.py:OtherPlugin"]
    said = complaints({"plugins": plugins, "trainer.zloss": {"evry": 2}}, files=[("mine.py", TWO_PLUGINS)])
    assert "trainer.zloss: this needs the plugin 'z', which is not listed\n" in said
    assert "    mine.py has a plugin with this section: list './mine.py:ZPlugin'" in said
    assert "did you mean 'every'?" in said, "what it holds is checked all the same"


def test_the_configuration_of_another_tool_is_called_that(complaints):
    keys = ("adapter", "lora_r", "sequence_len", "micro_batch_size", "num_epochs")
    first, second = complaints(dict.fromkeys(keys, 1)).splitlines()[:2]
    assert first == "run.yaml: this looks like an Axolotl configuration; 'dumbo docs quickstart' shows one of dumbo's"
    assert second.startswith("run.yaml:")


def test_what_may_belong_to_a_plugin_that_is_not_there_is_not_complained_about(complaints):
    changes = {
        "plugins": ["transformers", "transformers_trainer", "polars", "jinja_formatter", "./mine.py:Mine"],
        "trainer.mine": {"every": 2},
        "datasets.0.data_format": "my_format",
        "trainer.seed": "x",
    }
    said = complaints(changes)
    assert "there is no file" in said
    assert "trainer.seed: expected" in said
    assert "trainer.mine" not in said
    assert "my_format" not in said


def test_the_keys_beside_an_unknown_reader_are_left_alone(complaints):
    said = complaints({"datasets.0.type": "mine", "datasets.0.url": "x", "datasets.0.train_format.zzz": 1})
    assert "no reader is called 'mine'" in said
    assert "url" not in said
    assert "train_format.zzz: unknown option" in said


@pytest.mark.parametrize("key", ["_x", "__base__", "model_config", "copy", "a b", "__class__"])
def test_strange_keys_beside_an_unknown_reader_are_no_accident(complaints, key):
    said = complaints({"datasets.0.type": "mine", f"datasets.0.{key}": 1})
    assert "no reader is called 'mine'" in said


@pytest.mark.parametrize(
    ("plugins", "expected"),
    [
        ("transformers", "plugins: expected a list, each a text, got 'transformers' (a text)"),
        ([], "plugins: needs at least one entry"),
        (["transformers", 3], "plugins.1: expected a text, got 3 (a whole number)"),
        ([["transformers"]], "plugins.0: expected a text, got a list"),
        (None, "plugins: expected a list, each a text, got nothing"),
    ],
)
def test_a_list_of_plugins_that_is_none_is_not_called_incomplete(complaints, plugins, expected):
    said = complaints({"plugins": plugins})
    assert expected in said
    assert "no listed plugin has" not in said


def test_every_seat_that_is_empty_is_named(complaints):
    said = complaints({"plugins": ["polars", "jinja_formatter"]})
    for hook in ("load_model", "load_tokenizer", "build_trainer"):
        assert f"no listed plugin has '{hook}'" in said


def test_long_values_are_cut(complaints):
    said = complaints({"trainer.seed": "9" * 5000})
    assert len(said) < 400


def test_a_problem_says_file_and_line_of_what_it_was_merged_from(tmp_path, model_folder, rows_file):
    config = builders.run_config(model_folder, rows_file)
    (tmp_path / "base.yaml").write_text("trainer:\n  arguments:\n    lerning_rate: 1\n")
    (tmp_path / "run.yaml").write_text("extends: base.yaml\n" + yaml.safe_dump(config))
    with pytest.raises(ConfigError) as caught:
        configure(Path(tmp_path / "run.yaml"), (), Launch())
    assert str(caught.value).startswith(f"{tmp_path}/base.yaml:3:5: trainer.arguments.lerning_rate: ")
