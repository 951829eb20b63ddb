"""What models, rows and libraries say cannot drive a terminal: no escape sequence of theirs reaches it."""

import io
import sys

import pytest

from dumbo.cli.generation import to_stdout
from dumbo.cli.main import main
from dumbo.console import Console
from dumbo.visible import made_visible
from tests import builders

EVIL = "a\x1b]0;title\x07b\x9b31mc\x08\x08\rd\u202eetxt"
SEEN = "a␛]0;title␇b�31mc␈␈␍d�etxt"


class Terminal(io.StringIO):
    """A stream that a person watches."""

    def isatty(self):
        return True


def test_control_characters_become_signs():
    assert made_visible(EVIL) == SEEN
    assert made_visible("tabs\tand\nlines, ünïcode 👍🏽") == "tabs\tand\nlines, ünïcode 👍🏽"


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_line_of_a_run_is_plain(stream):
    output = stream()
    Console(stream=output).say(EVIL)
    Console(stream=output).table(["name"], [[EVIL]])
    assert output.getvalue().count(SEEN) == 2
    assert not set("\x1b\x07\x9b\x08\r\u202e") & set(output.getvalue())


def test_a_bar_shows_what_is_counted_as_it_is():
    output = Terminal()
    counted = list(Console(stream=output).track([1, 2], f"d[/b] [red]{EVIL} hf_{'a' * 34}", 2))
    assert counted == [1, 2]
    assert f"d[/b] [red]{SEEN}" in output.getvalue() and "hf_aaaa" not in output.getvalue()
    assert "\x1b]0;title" not in output.getvalue() and "\x9b31m" not in output.getvalue()


def test_the_names_of_files_are_harmless_on_a_terminal(tmp_path, model_folder, monkeypatch):
    rows = builders.write_rows(tmp_path / "rows[b]\x1b[31mred.jsonl")
    (tmp_path / "d[").mkdir()
    odd = builders.write_rows(tmp_path / "d[" / "b].jsonl")
    for file in (rows, odd):
        config = builders.write_config(tmp_path, model_folder, file, {"trainer.data.cache": False})
        for words in (["inspect"], ["preprocess", "--output", str(tmp_path / f"{file.name} prepared")]):
            monkeypatch.setattr(sys, "stdout", Terminal())
            assert main([*words, str(config)]) == 0
            written = sys.stdout.getvalue()
            assert file.name.replace("\x1b", "␛") in written
            assert "\x1b[31mred" not in written


def test_an_answer_is_harmless_on_a_terminal_and_itself_in_a_pipe(monkeypatch):
    for stream, expected in ((Terminal(), SEEN), (io.StringIO(), EVIL)):
        monkeypatch.setattr(sys, "stdout", stream)
        to_stdout(EVIL)
        assert stream.getvalue() == expected


def test_what_rows_and_templates_say_is_harmless(tmp_path, model_folder, capsys):
    rows = builders.write_rows(tmp_path / "rows.jsonl", [{EVIL: EVIL, "instruction": EVIL, "output": EVIL}] * 3)
    template = "{{ messages[0].content }}{{ raise_exception(messages[1].content) }}"
    changes = {"datasets.0.train_format": {"type": "jinja_messages", "template": template}, "trainer.data.cache": False}
    refused = builders.write_config(tmp_path, model_folder, rows, changes)
    columns = {"datasets.0.data_format": {"type": "columns", "field_output": "answer"}, "trainer.data.cache": False}
    missing = builders.write_config(tmp_path, model_folder, rows, columns, name="missing.yaml")
    for words in (["train", str(refused)], ["check", str(refused), "--rows"], ["check", str(missing), "--rows"]):
        assert main(words) == 2
    main(["inspect", str(refused)])
    main(["inspect", str(missing)])
    said = capsys.readouterr()
    assert not set("\x1b\x07\x9b\x08\r\u202e") & set(said.out + said.err)
    assert "␛]0;title␇" in said.err and "␛]0;title␇" in said.out


def test_samples_are_harmless(tmp_path, model_folder, rows_file, capsys):
    changes = {
        "plugins": ["transformers", "transformers_trainer", "polars", "jinja_formatter", "samples"],
        "evaluation.samples.prompts": [EVIL],
        "evaluation.samples.max_new_tokens": 1,
        "trainer.arguments.max_steps": 1,
    }
    assert main(["train", str(builders.write_config(tmp_path, model_folder, rows_file, changes))]) == 0
    said = capsys.readouterr().out
    assert "␛]0;title␇" in said and not set("\x1b\x07\x9b\x08\u202e") & set(said)
