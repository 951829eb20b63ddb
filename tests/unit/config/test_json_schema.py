"""The JSON Schema accepts what the program accepts, and refuses a key that the program refuses."""

from copy import deepcopy
from pathlib import Path

import jsonschema
import pytest
import yaml

from dumbo.cli.composed import composed_model
from dumbo.config.json_schema import json_schema
from dumbo.config.options import all_options
from dumbo.config.yaml_tree import parse_yaml
from tests import builders

EXAMPLES = sorted(file for file in (builders.ROOT / "examples").rglob("*.yaml") if "plugin" not in file.parts)


@pytest.fixture(scope="module")
def validator():
    schema = json_schema(composed_model())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.fixture
def config():
    """A configuration that is valid."""
    return builders.run_config(Path("model"), Path("rows.jsonl"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_examples_are_valid(validator, file):
    validator.validate(parse_yaml(file.read_text(encoding="utf-8"), file.name).value)


def test_the_full_form_is_valid(validator):
    text = """
model:
  base_model: HuggingFaceTB/SmolLM2-135M
  tokenizer: {pad_token: "<|pad|>", eos_token: "<|im_end|>"}
datasets:
  - path: tatsu-lab/alpaca
    type: huggingface_polars
    data_format: alpaca
    train_format:
      type: jinja_messages
      template: "{% for message in messages %}{{ message.content }}{% endfor %}"
trainer:
  arguments:
    batch_size: 16
    physical_batch_size: 1
    learning_rate: 1e-4
    num_train_epochs: 3
plugins: [transformers, transformers_trainer, polars, jinja_formatter]
"""
    validator.validate(parse_yaml(text, "run.yaml").value)


@pytest.mark.parametrize(
    "changes",
    [
        {"extends": "base.yaml"},
        {"extends": ["a.yaml", "b.yaml"]},
        {"datasets.0.data_format": {"type": "alpaca", "prompt": "plain"}},
        {"datasets.0.train_format": "chat_template"},
        {"trainer.arguments.learning_rate": "${env:LR}"},
        {"trainer.arguments.bf16": "auto"},
        {"trainer.arguments.bf16": True},
        {"trainer.data.val_set_size": 0.1},
        {"trainer.output_dir": None},
    ],
)
def test_other_ways_of_writing_are_valid(validator, config, changes):
    for key, value in changes.items():
        builders._change(config, key.split("."), value)
    validator.validate(config)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("modle", {}),
        ("model.base_modle", "x"),
        ("model.tokenizer.pad", "x"),
        ("trainer.arguments.learning_rte", 1),
        ("trainer.data.shufle", True),
        ("datasets.0.pth", "x"),
        ("datasets.0.train_format.tmplate", "x"),
        ("datasets.0.data_format", "alpacca"),
        ("datasets.0.type", "nobody"),
        ("datasets.0.path", builders.REMOVE),
        ("trainer.arguments.learning_rate", "fast"),
        ("trainer.arguments.learning_rate", -1),
        ("trainer.arguments.batch_size", 0),
        ("trainer.arguments.save_strategy", "sometimes"),
        ("model.trust_remote_code", "yes"),
        ("plugins", "transformers"),
        ("datasets", builders.REMOVE),
    ],
)
def test_what_the_program_refuses_is_invalid(validator, config, key, value):
    builders._change(config, key.split("."), value)
    assert not validator.is_valid(config)


def test_a_wrong_key_in_any_section_is_invalid(validator, config):
    sections = {option.key for option in all_options(composed_model()) if option.is_section} - {"datasets"}
    assert {"model", "trainer.arguments", "datasets.train_format"} <= sections
    for section in sections:
        broken = deepcopy(config)
        path = section.replace("datasets", "datasets.0").split(".")
        parent = broken
        for part in path:
            parent = parent[int(part)] if isinstance(parent, list) else parent.setdefault(part, {})
            if isinstance(parent, str):
                break
        if isinstance(parent, dict):
            parent["no_such_key"] = 1
            assert not validator.is_valid(broken), section


def test_every_option_has_its_sentence_for_the_editor(validator):
    def descriptions(part):
        if isinstance(part, dict):
            if "properties" in part:
                yield from part["properties"].items()
            for value in part.values():
                yield from descriptions(value)

    found = dict(descriptions(validator.schema))
    assert {"batch_size", "base_model", "path", "template", "prompt"} <= found.keys()
    assert [name for name, part in found.items() if not part.get("description")] == []


def test_a_schema_for_one_file_knows_its_plugins_alone(tmp_path, model_folder, rows_file):
    plugin = (
        "from dumbo.config.section import Section\n"
        "from dumbo.plugin_loader import LoggingPlugin\n"
        "class Options(Section):\n"
        '    """Options."""\n'
        "    every: int = 1\n"
        '    """How often."""\n'
        "class MinePlugin(LoggingPlugin):\n"
        '    """Mine."""\n'
        "    section, options_type = 'trainer.mine', Options\n"
        "    def get_metrics_collector(self): ...\n"
    )
    (tmp_path / "mine.py").write_text(plugin)
    changes = {"plugins": ["transformers", "polars", "./mine.py:MinePlugin"], "trainer.mine": {"every": 2}}
    file = builders.write_config(tmp_path, model_folder, rows_file, changes)
    schema = json_schema(composed_model(file))
    one = jsonschema.Draft202012Validator(schema)
    config = yaml.safe_load(file.read_text())
    config["datasets"][0]["data_format"] = {"type": "anything"}
    config["datasets"][0]["train_format"] = {"type": "anything"}
    one.validate(config)
    config["trainer"]["mine"]["evry"] = 2
    assert not one.is_valid(config)
