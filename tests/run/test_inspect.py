"""`dumbo inspect` and `dumbo check --rows`: what rows become, and what is strange about them."""

import io
import json
import re

import pytest

from dumbo.cli.main import main
from tests import builders
from tests.run.whole_runs import SHIPPED, printed_by

PLUGINS = '''
from typing import Literal
from dumbo.config.schema import FormatOptions
from dumbo.data.records import Conversation, Example, IGNORED
from dumbo.data.train_format import Explanation, MessageTokens, TrainFormatter
from dumbo.errors import DataError
from dumbo.plugin_loader import BasePlugin

class TurnsPlugin(BasePlugin):
    """Rows `{"turns": [[role, text], ...]}`."""
    data_formats = {"turns": FormatOptions}
    def build_data_format(self, options):
        def convert(row):
            if not row.values["turns"]:
                raise row.origin.error("there are no turns", "write [role, text]")
            messages = tuple({"role": role, "content": text} for role, text in row.values["turns"])
            return Conversation(messages, row.origin)
        return convert

class LetterOptions(FormatOptions):
    """One token for each letter."""
    quirk: Literal["", "warning", "no end", "two starts", "nothing", "unlike"] = ""
    """What is strange about it."""

class Letters(TrainFormatter):
    def __init__(self, options, tokenizer):
        self.quirk, self.tokenizer = options.quirk, tokenizer
        self.warnings = ("the end is never written",) if self.quirk == "warning" else ()
    def encode_batch(self, records):
        return [self._try(record) for record in records]
    def _try(self, record):
        try:
            return self._explained(record).example
        except DataError as error:
            return error
    def explain(self, record):
        explanation = self._explained(record)
        if self.quirk == "unlike":
            explanation.example.labels[-1] = IGNORED
        return explanation
    def _explained(self, record):
        start, end = self.tokenizer.bos_token, self.tokenizer.eos_token
        texts, trained, messages, straddling = [start] * (2 if self.quirk == "two starts" else 1), [], [], set()
        for index, message in enumerate(record.messages):
            first, is_answer = len(texts), message["role"] == "assistant" and self.quirk != "nothing"
            trained += [False] * (first - len(trained))
            if "forbidden" in message["content"]:
                raise record.origin.error(f"message {index + 1} has a forbidden word")
            texts += [*message["content"], *([] if self.quirk == "no end" else [end])]
            trained += [is_answer] * (len(texts) - first)
            if message["content"].startswith("~"):
                trained[first] = False
                straddling.add(first)
            messages.append(MessageTokens(index, message["role"], first, len(texts)))
        ids = [self.tokenizer(text, add_special_tokens=False).input_ids[0] for text in texts]
        labels = [token if is_so else IGNORED for token, is_so in zip(ids, trained, strict=True)]
        example = Example(ids, labels, record.origin, {"straddling_tokens": len(straddling)})
        remarks = ("a tilde is left out",) if straddling else ()
        return Explanation(example, tuple(texts), tuple(messages), frozenset(straddling), remarks)

class LettersPlugin(BasePlugin):
    train_formats = {"letters": LetterOptions}
    def build_train_format(self, options, tokenizer):
        return Letters(options, tokenizer)

class PlainPlugin(BasePlugin):
    """A plain function."""
    train_formats = {"plain": FormatOptions}
    def build_train_format(self, options, tokenizer):
        def encode(record):
            ids = tokenizer("".join(message["content"] for message in record.messages)).input_ids
            labels = [IGNORED] * len(ids) + [tokenizer.eos_token_id]
            return Example([*ids, tokenizer.eos_token_id], labels, record.origin)
        return encode
'''
GOOD = [[["user", f"{number} + 1?"], ["assistant", f"It is {number + 1}."]] for number in range(1, 6)]
MANY = [*GOOD[:2], [], [["user", "x"], ["assistant", "forbidden"]], *GOOD[2:], [], [["assistant", "so forbidden"]]]


@pytest.fixture(scope="module")
def started_model(tmp_path_factory):
    """A tiny model whose tokenizer has a start token."""
    tokenizer = builders.build_tokenizer(bos_token="<|endoftext|>")
    return builders.save_tiny_model(tmp_path_factory.mktemp("model") / "tiny", tokenizer)


@pytest.fixture
def write(tmp_path, started_model, monkeypatch):
    """Writes `run.yaml` over sources of turns, each with its train format, and with other changes."""
    monkeypatch.chdir(tmp_path)

    def write_config(*sources, train_format="letters", **changes):
        (tmp_path / "own.py").write_text(PLUGINS)
        entries = []
        for number, turns in enumerate(sources or [GOOD]):
            builders.write_rows(tmp_path / f"rows{number}.jsonl", [{"turns": each} for each in turns])
            entry = {"path": f"rows{number}.jsonl", "type": "huggingface_polars", "data_format": "turns"}
            entries.append(entry | {"train_format": train_format})
        own = [f"./own.py:{name}" for name in ("TurnsPlugin", "LettersPlugin", "PlainPlugin")]
        changes = {key.replace("__", "."): value for key, value in changes.items()}
        shipped = [name for name in SHIPPED if name != "jinja_formatter"]
        changes = {"datasets": entries, "plugins": [*shipped, *own], "model.tokenizer": {}} | changes
        builders.write_config(tmp_path, started_model, tmp_path / "rows0.jsonl", changes)

    return write_config


@pytest.fixture
def inspect(capsys):
    """Runs `dumbo inspect run.yaml`, which must end with `code`; returns what was printed, or said against it."""

    def run(*words, code=0, verb="inspect"):
        printed = printed_by(capsys, code, verb, "run.yaml", *map(str, words))
        assert (printed.err == "") == (code != 2)
        return printed.err if code == 2 else printed.out

    return run


def test_rows_are_shown_with_marks_where_there_are_no_colours(write, inspect):
    write([[["user", "Hi"], ["assistant", "~a\nb"]], *GOOD])
    said = inspect()
    assert "\x1b" not in said
    assert "rows0.jsonl:1  9 tokens, 4 trained (44.4%)" in said
    assert "  <|endoftext|>Hi<|im_end|>‹~›⟦a⏎\n  b<|im_end|>⟧\n" in said
    assert re.search(r"^ +1  user +1–3 +3 +0\n +2  assistant +4–8 +5 +4\n  note: a tilde is left out$", said, re.M)
    assert said.count("⟦trained⟧") == 1, "the legend comes once"
    assert "rows0.jsonl:3" in said and "rows0.jsonl:4" not in said
    assert said.endswith("nothing strange was found\n")


def test_all_rows_are_added_up(write, inspect):
    write([[["user", "Hi"], ["assistant", "~a\nb"]], *GOOD], [[["assistant", "ab"], ["user", "c"]]])
    said = inspect("--limit", 0)
    assert "rows0.jsonl:1" not in said and "⟦" not in said
    assert re.search(r"rows0.jsonl +6 +0 +94 +52.1% +17$", said, re.M)
    assert re.search(r"rows1.jsonl +1 +0 +6 +50% +6$", said, re.M)
    assert re.search(r"rows0.jsonl +straddling tokens +1$", said, re.M)
    assert re.search(r"rows1.jsonl +user +1 +2 +0% +100%$", said, re.M)
    assert re.search(r"rows1.jsonl +assistant +1 +3 +100% +0%$", said, re.M)


def test_a_row_is_found_by_its_number(write, inspect):
    write(GOOD, [*GOOD, *GOOD, []])
    said = inspect("--row", 7, code=1)
    assert said.count("tokens, ") == 1 and "rows1.jsonl:7" in said
    assert "rows0.jsonl:4" in inspect("--row", 4, "--source", 0)
    assert "rows1.jsonl:11  cannot be used\n  there are no turns\n      write [role, text]" in inspect(
        "--row", 11, code=1
    )
    assert inspect("--row", 12, code=2) == (
        "--row 12: there is no such row\n    rows0.jsonl has rows 1 to 5\n    rows1.jsonl has rows 1 to 11\n"
    )


@pytest.mark.parametrize("name", ["1", "datasets.1", "rows1.jsonl", "folder/rows1.jsonl"])
def test_a_source_is_chosen(write, inspect, name, tmp_path):
    write(GOOD, MANY, GOOD)
    if "/" in name:
        (tmp_path / "folder").mkdir()
        (tmp_path / "rows1.jsonl").rename(tmp_path / name)
        file = tmp_path / "run.yaml"
        file.write_text(file.read_text().replace("rows1.jsonl", name))
    said = inspect("--source", name, code=1)
    assert "rows1.jsonl:1" in said and "rows0" not in said and "rows2" not in said


@pytest.mark.parametrize("name", ["0", "rows0.jsonl", "rows1.jsonl"])
def test_a_source_of_several_files_is_chosen_by_any_of_them(write, inspect, name, tmp_path):
    write(GOOD, MANY)
    file = tmp_path / "run.yaml"
    file.write_text(file.read_text().replace("path: rows0.jsonl", "path: [rows0.jsonl, rows1.jsonl]", 1))
    said = inspect("--source", name, code=1)
    assert "rows0.jsonl and 1 more" in said and "rows0.jsonl:1" in said


def test_a_source_that_is_not_there_is_said(write, inspect):
    write(GOOD, GOOD)
    for name in ("2", "rows", "-1"):
        expected = f"--source {name}: there is no such source\n    sources are: 0 (rows0.jsonl), 1 (rows1.jsonl)\n"
        assert inspect(f"--source={name}", code=2) == expected


@pytest.mark.parametrize("policy", ["error", "drop"])
def test_all_bad_rows_are_shown(write, inspect, policy):
    write(MANY, [[], []], trainer__data__on_bad_row=policy)
    said = inspect("--bad", code=1)
    places = re.findall(r"^(\S+:\d+)  cannot be used$", said, re.M)
    assert places == [*(f"rows0.jsonl:{line}" for line in (3, 4, 8, 9)), "rows1.jsonl:1", "rows1.jsonl:2"]
    assert "  there are no turns\n      write [role, text]\n" in said
    assert "rows0.jsonl: 4 rows that cannot be used\n" in said
    assert "2 × message 2 has a forbidden word (the first: rows0.jsonl:4)" in said, "numbers make no other reason"
    assert "2 × there are no turns (the first: rows1.jsonl:1)" in said
    assert "... and 4 more" in inspect("--bad", "--limit", 2, code=1)


def test_no_bad_rows_are_no_error(write, inspect):
    write(train_format={"type": "letters", "quirk": "no end"})
    assert inspect("--bad") == "\nno bad rows\n"


def test_bad_rows_are_an_anomaly(write, inspect):
    write(MANY)
    said = inspect(code=1)
    assert "1 thing to look into\n  rows0.jsonl: 4 rows that cannot be used" in said
    assert re.search(r"rows0.jsonl +5 +4 +", said)


@pytest.mark.parametrize(
    ("quirk", "expected"),
    [
        ("warning", "rows0.jsonl: the end is never written"),
        ("no end", "rows0.jsonl: 5 rows whose last trained token is no end token: .* (the first: rows0.jsonl:1)"),
        ("two starts", "rows0.jsonl: 5 rows with two start tokens: .* (the first: rows0.jsonl:1)"),
        ("nothing", "rows0.jsonl: 5 rows without a trained token, 100% of all (the first: rows0.jsonl:1)"),
    ],
)
def test_what_is_strange_is_said(write, inspect, quirk, expected):
    write(train_format={"type": "letters", "quirk": quirk})
    pattern = re.escape(expected).replace(r"\.\*", ".*")
    assert re.search(f"1 thing to look into\n  {pattern}\n", inspect(code=1))
    assert re.search(f"  warning: {pattern}\n", inspect("--rows", verb="check"))


def test_rows_that_are_too_long_are_said(write, inspect):
    write([*GOOD, [["user", "x" * 50], ["assistant", "y"]]], trainer__data__sequence_length=40)
    assert "1 row longer than trainer.data.sequence_length" in inspect(code=1)
    assert "nothing strange" in inspect("trainer.data.too_long=drop")


def test_rows_that_are_too_long_for_the_model_are_said(write, inspect, started_model):
    """The folder of the model says how long they may be, before the model is loaded."""
    limit = json.loads((started_model / "config.json").read_text())["max_position_embeddings"]
    write([*GOOD, [["user", "x" * limit], ["assistant", "y"]]])
    assert "1 row longer than" in inspect(code=1)
    assert "nothing strange" in inspect(f"model.config_overrides.max_position_embeddings={limit * 2}")


def test_an_explanation_of_another_example_is_an_error(write, inspect):
    write(train_format={"type": "letters", "quirk": "unlike"})
    assert inspect(code=2) == "plugin 'letters': rows0.jsonl:1 is explained as another example than it is\n"


def test_a_plain_function_is_explained_by_its_tokens(write, inspect):
    write([[["user", "Grüße 😀\x1b[31m"]], *GOOD], train_format="plain")
    said = inspect()
    assert "  Grüße 😀␛[31m⟦<|im_end|>⟧" in said, "no control character reaches the terminal"
    assert "message" not in said, "nobody knows where its messages are"


@pytest.mark.parametrize("train_format", ["chat_template", "jinja_messages"])
def test_the_shipped_formats_are_shown(tmp_path, model_folder, rows_file, monkeypatch, inspect, train_format):
    monkeypatch.chdir(tmp_path)
    changes = {"datasets.0.train_format": train_format} if train_format == "chat_template" else {}
    builders.write_config(tmp_path, model_folder, rows_file, changes)
    said = inspect("--row", 2)
    assert "rows.jsonl:2" in said and re.search(r"⟦[^⟦]*The sum is.*<\|im_end\|>⟧", said)


def test_a_tokenizer_learns_from_all_sources(write, inspect):
    changes = {"model": {"architecture": {"model_type": "llama", "hidden_size": 32}}}
    plugins = [name for name in SHIPPED if name != "jinja_formatter"]
    plugins += ["tokenizer_trainer", *(f"./own.py:{name}" for name in ("TurnsPlugin", "LettersPlugin", "PlainPlugin"))]
    write(GOOD, [[["user", "zebra zebra zebra"], ["assistant", "zebra"]]] * 3, train_format="plain")
    one = inspect("--source", 0)
    write(
        GOOD,
        [[["user", "zebra zebra zebra"], ["assistant", "zebra"]]] * 3,
        train_format="plain",
        plugins=plugins,
        model__base_model=builders.REMOVE,
        model__architecture=changes["model"]["architecture"],
        model__tokenizer={"eos_token": "<|end|>", "pad_token": "<|pad|>"},
        model__tokenizer_trainer={"vocab_size": 300},
    )
    learned = inspect("--source", 0)
    assert learned != one and "zebra" not in learned and "⟦<|end|>⟧" in learned
    assert "of the run has other tokens" in inspect("--rows", verb="check")


def test_a_tokenizer_that_cannot_be_loaded_is_said(write, inspect, tmp_path, started_model):
    folder = tmp_path / "without"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).symlink_to(started_model / name)
    write(model__base_model=str(folder))
    assert "tokenizer" in inspect(code=2)
    assert "tokenizer" in inspect("--rows", verb="check", code=2)


def test_a_page_is_written(write, inspect, tmp_path):
    write([[["user", "<script>alert(1)</script> 😀"], ["assistant", "~a\nb"]], *MANY])
    said = inspect("--html", "rows.html", code=1)
    assert said.endswith("\nrows.html\n")
    page = (tmp_path / "rows.html").read_text(encoding="utf-8")
    assert "<script" not in page and "http://" not in page.replace("http-equiv", "") and "https://" not in page
    assert re.search(r'<span class="trained special" title="token \d+, id 2, special, trained, label is its id">', page)
    assert '<span class="straddling" title="token ' in page and 'label -100">' in page and "⏎\n</span>" in page
    for shown in ("rows0.jsonl:1", "Note: a tilde is left out", "Messages by role", "rows that cannot be used"):
        assert shown in page, shown
    assert inspect("--bad", "--html", "rows.html", code=1).endswith("rows.html\n"), "a page of ours may be replaced"
    assert "message 2 has a forbidden word" in (tmp_path / "rows.html").read_text(encoding="utf-8")


def test_other_files_are_not_replaced(write, inspect, tmp_path):
    write()
    (tmp_path / "mine.html").write_text("<p>mine</p>")
    assert "this file is no page of an inspection" in inspect("--html", "mine.html", code=2)
    assert (tmp_path / "mine.html").read_text() == "<p>mine</p>"
    assert "ends in .html\n    write --html rows.html" in inspect("--html", "rows.txt", code=2)
    assert "there is no folder no" in inspect("--html", "no/rows.html", code=2)
    (tmp_path / "folder.html").mkdir()
    assert "this is a folder" in inspect("--html", "folder.html", code=2)


def test_rows_and_bad_rows_are_not_asked_for_together(write):
    write()
    with pytest.raises(SystemExit) as ended:
        main(["inspect", "run.yaml", "--bad", "--row", "3"])
    assert ended.value.code == 2


def test_a_check_of_rows_makes_tokens(write, inspect):
    write()
    assert "  rows0.jsonl: 5 rows, 85 tokens, 52.9% trained\n" in inspect("--rows", verb="check")
    write(MANY)
    assert inspect("--rows", verb="check", code=2).startswith("rows0.jsonl:3: there are no turns\n")
    write([*GOOD, MANY[3]])
    assert inspect("--rows", verb="check", code=2).startswith("rows0.jsonl:6: message 2 has a forbidden word\n")
    said = inspect("--rows", "trainer.data.on_bad_row=drop", verb="check")
    assert "  rows0.jsonl: 5 rows, 85 tokens, 52.9% trained, 1 bad row dropped\n" in said


def test_a_source_of_which_nothing_can_be_used_is_inspected(write, inspect):
    write([[]], [[["assistant", "forbidden"]]])
    said = inspect(code=1)
    assert "2 things to look into" in said and "rows1.jsonl:1  cannot be used" in said


def test_rows_that_cannot_be_read_at_all_are_an_error(write, inspect, tmp_path):
    write()
    (tmp_path / "rows0.jsonl").write_text('{"turns": []}\n{"turns": \n')
    assert inspect(code=2).startswith("rows0.jsonl:2:10: not valid JSON")
    (tmp_path / "rows0.jsonl").write_text("")
    assert "rows0.jsonl" in inspect(code=2)


def test_an_output_that_knows_few_letters_is_no_error(write, monkeypatch):
    write()
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    assert main(["inspect", "run.yaml"]) == 0
    stream.flush()
    assert b"?trained?" in stream.buffer.getvalue()
