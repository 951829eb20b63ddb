"""Options in words: what a key takes, its default, and what `dumbo explain` says about it."""

import re
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from dumbo.cli.commands.explain import describe
from dumbo.cli.composed import composed_model
from dumbo.cli.main import main
from dumbo.config.arguments import TrainerArguments
from dumbo.config.foreign_keys import FOREIGN_KEYS, FOREIGN_MAPPINGS, FOREIGN_PLACES, FOREIGN_TYPES, GROUPS, looks_like
from dumbo.config.options import all_options, model_at
from dumbo.config.section import Section
from dumbo.config.words import type_words, value_words, yaml_words
from dumbo.plugin_finder import find_installed

OPTIONS = all_options(composed_model())


class Sample(Section):
    """Every kind of field."""

    truth: bool
    count: Annotated[int, Field(ge=1)]
    share: Annotated[float, Field(ge=0, lt=1)]
    bounded: int = Field(gt=0, le=9)
    word: str | None = None
    named: Annotated[str, Field(min_length=1)] = "x"
    choice: Literal["a", "b"] = "a"
    either: bool | Literal["auto"] = "auto"
    size: Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0, lt=1)] = 0
    words: tuple[str, ...] = ()
    free: dict[str, Any] = Field(default_factory=dict)
    nested: TrainerArguments = Field(default_factory=TrainerArguments)
    anything: Any = None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("truth", "true or false"),
        ("count", "a whole number of at least 1"),
        ("share", "a number of at least 0 and below 1"),
        ("bounded", "a whole number above 0 and of at most 9"),
        ("word", "a text"),
        ("named", "a text that is not empty"),
        ("choice", "one of a, b"),
        ("either", "true or false or auto"),
        ("size", "a whole number of at least 0 or a number of at least 0 and below 1"),
        ("words", "a list, each a text"),
        ("free", "a mapping"),
        ("nested", "a mapping"),
        ("anything", "a value"),
    ],
)
def test_types_in_words(name, words):
    assert type_words(Sample.model_fields[name]) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "nothing"),
        (True, "true (true or false)"),
        (3, "3 (a whole number)"),
        (0.5, "0.5 (a number)"),
        ("fast", "'fast' (a text)"),
        ("x" * 99, "'" + "x" * 57 + "...' (a text)"),
        ([1], "a list"),
        ({"a": 1}, "a mapping"),
    ],
)
def test_values_in_words(value, words):
    assert value_words(value) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [(None, "null"), (False, "false"), ((1, "a"), "[1, a]"), ({"a": [True]}, "{a: [true]}"), (1e-5, "1e-05")],
)
def test_values_in_yaml(value, words):
    assert yaml_words(value) == words


def test_every_option_says_what_it_takes_and_does():
    assert len(OPTIONS) > 90
    for option in OPTIONS:
        assert option.doc.endswith((".", "?", "!")), option.key
        assert option.takes not in ("", "a value"), option.key
        assert option.default, option.key


def test_the_list_of_options_has_every_level_once():
    marks = [(option.key, option.when, option.doc) for option in OPTIONS]
    assert len(marks) == len(set(marks))
    keys = {option.key for option in OPTIONS}
    assert {f"trainer.arguments.{name}" for name in TrainerArguments.model_fields} <= keys
    assert {"datasets.path", "datasets.train_format.template", "datasets.data_format.field_messages"} <= keys


def test_a_key_of_one_type_only_says_so():
    when = {option.key: option.when for option in OPTIONS}
    assert when["datasets.train_format.template"] == "type: jinja_messages"
    assert when["datasets.data_format.field_output"] == "type: alpaca"
    assert when["model.base_model"] == ""


def test_the_model_of_a_place_follows_the_type_that_is_written():
    model = composed_model()
    tree = {
        "datasets": [{"type": "huggingface_polars", "train_format": {"type": "chat_template"}, "data_format": "alpaca"}]
    }
    assert "chat_template_kwargs" in model_at(model, tree, ("datasets", 0, "train_format")).model_fields
    assert "path" in model_at(model, tree, ("datasets", 0)).model_fields
    assert "learning_rate" in model_at(model, tree, ("trainer", "arguments")).model_fields
    assert model_at(model, tree, ("model", "base_model")) is None
    assert model_at(model, tree, ("nothing", 3, "x")) is None


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: f"{option.key} {option.when}".strip())
def test_explain_has_an_answer_for_every_option(option):
    text = describe(option)
    assert text.startswith(option.key)
    assert option.when in text
    assert f"default  {option.default}\n" in text
    assert text.endswith(option.doc)


def test_explain_takes_the_last_part_of_a_key_and_positions(capsys):
    assert main(["explain", "learning_rate"]) == 0
    assert "trainer.arguments.learning_rate" in capsys.readouterr().out
    assert main(["explain", "datasets.0.path"]) == 0
    assert "datasets.path" in capsys.readouterr().out


def test_explain_lists_a_section_and_the_sections(capsys):
    assert main(["explain", "trainer.data"]) == 0
    out = capsys.readouterr().out
    assert "sequence_length" in out
    assert "[true]" in out, "shuffle's default"
    assert main(["explain"]) == 0
    assert "plugins" in capsys.readouterr().out


@pytest.mark.parametrize(("key", "hint"), [("learning_rte", "learning_rate"), ("trainer.sed", "trainer.seed")])
def test_explain_suggests_what_is_near(key, hint, capsys):
    assert main(["explain", key]) == 2
    assert hint in capsys.readouterr().err


def test_keys_of_other_tools_are_none_of_a_section_s_own():
    assert FOREIGN_KEYS.keys() & {option.name for option in OPTIONS} == set()
    assert FOREIGN_PLACES.keys() & {option.key for option in OPTIONS} == set()
    assert FOREIGN_MAPPINGS.keys() <= {option.name for option in OPTIONS if "mapping" not in option.takes}


def test_each_key_of_another_tool_has_one_answer():
    assert len(FOREIGN_KEYS) == sum(len(keys.split()) for _, keys, _ in GROUPS)
    assert all(hint and set(tools) <= set("ATL") for tools, _, hint in GROUPS)


def test_types_of_other_tools_are_what_the_advice_says():
    found = {kind: [p.type for p in find_installed()[0]] for kind in ("data_format", "train_format")}
    formats = {kind: {n for plugin in types for n in getattr(plugin, f"{kind}s", ())} for kind, types in found.items()}
    for name, text in FOREIGN_TYPES.items():
        assert all((name in names) == (f"'{name}' is a {kind}" in text) for kind, names in formats.items()), name


@pytest.mark.parametrize(
    ("keys", "tool"),
    [
        ("base_model adapter lora_r sequence_len micro_batch_size num_epochs", "an Axolotl"),
        ("model_name_or_path stage finetuning_type lora_target cutoff_len dataset_dir", "a LLaMA-Factory"),
        ("dataset_name torch_dtype use_peft packing report_to per_device_train_batch_size", "a TRL"),
        ("lora_r lora_alpha deepspeed warmup_ratio gradient_accumulation_steps", "another tool's"),
        ("adapter lora_r sequence_len micro_batch_size modle", None),
    ],
)
def test_many_keys_of_a_tool_tell_whose_configuration_it_is(keys, tool):
    assert looks_like(keys.split()) == tool


def test_explain_knows_keys_of_other_tools(capsys):
    assert main(["explain", "trainer.arguments.gradient_accumulation_steps"]) == 2
    assert capsys.readouterr().err.splitlines()[1:] == ["    " + FOREIGN_KEYS["gradient_accumulation_steps"]]


@pytest.mark.parametrize(
    ("key", "hints"),
    [
        ("lora", ["'dumbo explain' lists the sections"]),
        ("lerning_rate", ["did you mean trainer.arguments.learning_rate?", "'dumbo explain' lists the sections"]),
        (
            "trainer.zebra",
            ["for a plugin in a file: dumbo plugins './file.py:Class'", "'dumbo explain' lists the sections"],
        ),
    ],
)
def test_explain_guesses_nothing_that_is_far(key, hints, capsys):
    assert main(["explain", key]) == 2
    assert capsys.readouterr().err.splitlines()[1:] == [f"    {hint}" for hint in hints]


def test_the_page_of_all_options_has_every_section_once(capsys):
    assert main(["docs", "options"]) == 0
    headings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("## ")]
    assert len(headings) == len(set(headings)) > 5


def test_what_the_advice_for_foreign_keys_names_exists():
    names = {option.name for option in OPTIONS} | {option.key for option in OPTIONS}
    mentioned = {
        word
        for text in (*FOREIGN_KEYS.values(), *FOREIGN_PLACES.values())
        for word in re.findall(r"[a-z]+(?:[._][a-z_]+[0-9]*)+", text)
    }
    assert "trainer.arguments.learning_rate" in mentioned
    assert mentioned - names == {"metrics.jsonl"}
