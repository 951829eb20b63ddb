"""A run's chat template: named or from a file, the same in training, in everything that is saved, and at inference."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from dumbo.chat.names import template_text
from dumbo.cli.main import main
from dumbo.inference.opening import open_model
from tests import builders
from tests.run.whole_runs import printed_by, write_and_run

BRIEF = "{% for m in messages %}{{ m.role }}> {{ m.content }}{{ eos_token }}\n{% endfor %}" + (
    "{% if add_generation_prompt %}assistant> {% endif %}"
)


def chat_run(folder: Path, model_folder: Path, rows_file: Path, template: str, **changes) -> Path:
    changes = {"datasets.0.train_format": {"type": "chat_template", "chat_template": template}, **changes}
    return write_and_run(folder, model_folder, rows_file, changes)


def test_a_template_from_a_file_is_saved_with_every_checkpoint(tmp_path, model_folder, rows_file):
    file = tmp_path / "brief.jinja"
    file.write_text(BRIEF, encoding="utf-8")
    saving = {"trainer.arguments.save_strategy": "steps", "trainer.arguments.save_steps": 1}
    run = chat_run(tmp_path, model_folder, rows_file, str(file), **saving)
    folders = [run / "model", *sorted((run / "checkpoints").iterdir())]
    assert len(folders) == 3
    for folder in folders:
        assert AutoTokenizer.from_pretrained(folder).chat_template == BRIEF
    file.unlink()  # whoever gets the run has no such file
    opened = open_model(run)
    prompt = opened.generator.prompt([{"role": "user", "content": "Add 1 and 2."}])
    assert opened.format == "chat_template"
    # In rows the space is part of the first word's token, so a prompt leaves it to the model.
    assert opened.generator.tokenizer.decode(prompt) == "user> Add 1 and 2.<|im_end|>\nassistant>"


def test_a_named_template_is_the_tokenizers_from_then_on(tmp_path, model_folder, rows_file):
    run = chat_run(tmp_path, model_folder, rows_file, "zephyr")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert tokenizer.chat_template == template_text("zephyr")
    said = [{"role": "user", "content": "Hi"}]
    written = tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
    assert written == "<|user|>\nHi<|im_end|>\n<|assistant|>\n"
    assert open_model(run).generator.prompt(said) == tokenizer(written, add_special_tokens=False)["input_ids"]


def two_sources(rows_file, first, second):
    """Changes that give a run two sources, each with a train format."""
    source = {"path": str(rows_file), "type": "huggingface_polars", "data_format": "alpaca", "train_format": second}
    return {"datasets.0.train_format": first, "datasets.1": source}


ALPACA = {"type": "chat_template", "chat_template": "alpaca"}


@pytest.mark.parametrize(
    "changes",
    [
        {"datasets.1.train_format.chat_template": "zephyr"},
        {"model.tokenizer.chat_template": "zephyr", "datasets.1.train_format": "chat_template"},
    ],
)
def test_two_templates_in_a_run_are_refused_before_anything_is_loaded(tmp_path, rows_file, capsys, changes):
    changes = {**two_sources(rows_file, ALPACA, ALPACA), **changes}
    file = builders.write_config(tmp_path, Path("nobody/nothing"), rows_file, changes)
    assert main(["check", str(file)]) == 2
    assert "train_format.chat_template: another template than " in capsys.readouterr().err


DEEP = {
    "brackets": "{{ " + "(" * 500 + "1" + ")" * 500 + " }}",
    "loops": "{% for m in messages %}" * 25 + "{% endfor %}" * 25,
    "conditions": "{% if messages %}" * 120 + "{% endif %}" * 120,
    "filters": "{{ eos_token" + "|trim" * 600 + " }}",
}
"""More levels than Jinja or Python can read, each of another kind."""


@pytest.mark.parametrize("template", DEEP.values(), ids=DEEP)
def test_a_template_that_is_nested_too_deeply_is_told_at_its_place(tmp_path, model_folder, rows_file, capsys, template):
    for options, key in (
        ({"type": "jinja_messages", "template": template}, "template"),
        ({"type": "chat_template", "chat_template": template}, "chat_template"),
    ):
        file = builders.write_config(tmp_path, model_folder, rows_file, {"datasets.0.train_format": options})
        said = printed_by(capsys, 2, "check", str(file)).err
        assert f"datasets.0.train_format.{key}: " in said and "it is nested too deeply to be read" in said
    theirs = Path(shutil.copytree(model_folder, tmp_path / "theirs"))
    (theirs / "chat_template.jinja").write_text(template)
    file = builders.write_config(tmp_path, theirs, rows_file, {"datasets.0.train_format": "chat_template"})
    for words in (["check", "--rows"], ["train"]):
        said = printed_by(capsys, 2, *words, str(file)).err
        assert "model.tokenizer.chat_template: the chat template is broken: it is nested too deeply to be read" in said


@pytest.mark.parametrize("words", [["check", "--rows"], ["inspect"], ["train"]])
def test_a_template_beside_the_tokenizers_own_is_refused(tmp_path, model_folder, rows_file, capsys, words):
    changes = two_sources(rows_file, ALPACA, "chat_template")
    file = builders.write_config(tmp_path, model_folder, rows_file, changes)
    assert main([*words, str(file)]) == 2
    message = capsys.readouterr().err
    assert "datasets.1.train_format: it writes by another chat template than datasets.0" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_on_eos": "foo"}, ".train_on_eos: expected one of turn, all, last, none"),
        ({"train_on_eoss": "all"}, ".train_on_eoss: unknown option\n    did you mean 'train_on_eos'?"),
        ({"eot_tokens": "</s>"}, ".eot_tokens: expected "),
        ({"chat_template": 3}, ".chat_template: expected a text, got 3"),
        ({"roles_to_train": ["asistant"]}, ".roles_to_train: no role is called 'asistant': did you mean 'assistant'?"),
        ({"roles_to_train": []}, ".roles_to_train: needs at least one entry"),
        ({"roles_to_train": ["user"], "train_on_inputs": True}, "datasets.0.train_format: 'roles_to_train' chooses"),
    ],
)
def test_a_mistake_beside_a_template_is_told_at_its_place(tmp_path, rows_file, capsys, options, message):
    changes = {"datasets.0.train_format": {"type": "chat_template", "chat_template": "chatml", **options}}
    file = builders.write_config(tmp_path, Path("nobody/nothing"), rows_file, changes)
    assert main(["check", str(file)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("chatlm", "neither a named template, nor Jinja, nor the path of a .jinja file: did you mean 'chatml'?"),
        ("none.jinja", "the file 'none.jinja' cannot be read: No such file or directory"),
        ("{% for m in messages %}", "is not valid Jinja: line 1: "),
        ("{{ f(a=1, a=2) }}", "Python refuses what Jinja makes of it: keyword argument repeated"),
    ],
)
def test_a_template_that_is_none_is_found_before_anything_is_loaded(tmp_path, rows_file, capsys, template, message):
    changes = {"datasets.0.train_format": {"type": "chat_template", "chat_template": template}}
    file = builders.write_config(tmp_path, Path("nobody/nothing"), rows_file, changes)
    assert main(["check", str(file)]) == 2
    said = capsys.readouterr().err
    assert message in said and "datasets.0.train_format.chat_template" in said


def test_what_is_doubtful_about_every_row_is_said_once(tmp_path, model_folder, rows_file, capsys):
    chat_run(tmp_path, model_folder, rows_file, "llama3", **{"model.tokenizer.bos_token": "<|endoftext|>"})
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]
    assert len(said) == 2
    assert (
        'add them: model.tokenizer.special_tokens: ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]'
        in (said[0])
    )
    assert "ends answers in '<|eot_id|>' and never writes the tokenizer's end token '<|im_end|>'" in said[1]


def test_what_was_met_on_the_way_is_in_the_table_and_the_summary(tmp_path, model_folder, capsys):
    thought = {"role": "assistant", "content": "5", "reasoning_content": "2 and 3"}
    talk = [{"role": "user", "content": "Add 2 and 3."}, thought] * 2
    rows = builders.write_rows(tmp_path / "rows.jsonl", [{"messages": talk}] * 4)
    run = chat_run(tmp_path, model_folder, rows, "qwen3", **{"datasets.0.data_format": "messages"})
    assert "turns without their thought" in capsys.readouterr().out
    [source] = json.loads((run / "summary.json").read_text())["data"]
    assert source["turns without their thought"] == 4
