"""`dumbo init`: every configuration that it can write is one that `check` accepts, and a run that learns."""

import builtins
import itertools
import json
import sys
from pathlib import Path

import pytest

from dumbo.cli.main import main
from dumbo.config.yaml_tree import parse_yaml
from dumbo.starting.answers import trackers
from dumbo.starting.models import cached_models, named_model, size_words
from dumbo.starting.rows import fitting_format, peek
from tests import builders
from tests.house.imports import loaded_by
from tests.run.whole_runs import metrics_of

CHATS = [
    {
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": f"Hi {number}"},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "Bye."},
            {"role": "assistant", "content": "See you."},
        ]
    }
    for number in range(20)
]
MODELS = ("models/chat", "plain", "owner/some-7B", "owner/some-1B-Instruct", "random")
READY_TRACKERS = tuple(tracker.name for tracker in trackers() if not tracker.install)
DATA = ("alpaca.jsonl", "data/chats.jsonl", "data/questions.csv", "owner/rows")


@pytest.fixture(scope="module")
def models(tmp_path_factory, model_folder) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "chat").symlink_to(model_folder)
    builders.save_tiny_model(folder / "plain", builders.build_tokenizer(chat_template=None))
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch, models) -> Path:
    """A folder as somebody might have it: two models, and files of rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub-home"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("data", "models"):
        (tmp_path / name).mkdir()
    (tmp_path / "models" / "chat").symlink_to(models / "chat")
    (tmp_path / "plain").symlink_to(models / "plain")
    builders.write_rows(tmp_path / "alpaca.jsonl")
    builders.write_rows(tmp_path / "data" / "chats.jsonl", CHATS)
    lines = ["Question,Context,Answer", *(f"How much is {n} and {n}?,numbers,{2 * n}" for n in range(30))]
    (tmp_path / "data" / "questions.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def written(file: str = "run.yaml") -> dict:
    tree = parse_yaml(Path(file).read_text(encoding="utf-8"), file)
    assert not tree.problems
    return tree.value


def answer(monkeypatch, *lines: str) -> None:
    """Sit at a terminal and type `lines`; then comes Ctrl-C."""
    typed = iter(lines)

    def read(prompt: str = "") -> str:
        try:
            return next(typed)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(builtins, "input", read)


def require_accepted(model: str, data: str, weights: str, held_out: str, tracker: str) -> None:
    """Write a configuration from these answers and check it."""
    Path("run.yaml").unlink(missing_ok=True)
    flags = ["--model", model, "--data", data, weights, "--held-out", held_out, "--tracker", tracker]
    assert main(["init", *flags]) == 0, flags
    assert main(["check", "run.yaml"]) == 0, flags
    config = written()
    assert ("samples" in config["plugins"]) == (held_out != "0")
    assert config["datasets"][0]["path"] == data
    assert ("peft" in config["model"]) == (weights == "--lora")


def combinations() -> list[tuple[str, str, str]]:
    """Model, data and weights; random weights take no adapter."""
    every = itertools.product(MODELS, DATA, ("--lora", "--full"))
    return [(model, data, weights) for model, data, weights in every if (model, weights) != ("random", "--lora")]


def test_combinations_are_accepted(here):
    """Every third, so that each answer is in some; all of them in the long tests."""
    some = combinations()[::3]
    assert [len(set(answers)) for answers in zip(*some, strict=True)] == [len(MODELS), len(DATA), 2]
    for number, (model, data, weights) in enumerate(some):
        require_accepted(model, data, weights, ("10%", "0", "3")[number % 3], "none")


@pytest.mark.full
@pytest.mark.parametrize("tracker", READY_TRACKERS)
def test_every_combination_with_every_tracker_is_accepted(here, tracker):
    for (model, data, weights), held_out in itertools.product(combinations(), ("10%", "3", "0")):
        require_accepted(model, data, weights, held_out, tracker)


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize(("tracker", "model"), [*zip(READY_TRACKERS, itertools.cycle(["plain", "random"]))])
def test_every_tracker_is_accepted(here, capsys, monkeypatch, tracker, model, gpu):
    if gpu:
        from dumbo.starting import questions
        from dumbo.starting.machine import Gpu

        monkeypatch.setattr(questions, "find_gpu", lambda: Gpu("a GPU", "1", 40_000))
    assert main(["init", "--model", model, "--data", "alpaca.jsonl", "--tracker", tracker]) == 0
    assert main(["check", "run.yaml"]) == 0, capsys.readouterr().err
    assert tracker in written()["plugins"]
    assert written()["trainer"]["arguments"]["physical_batch_size"] >= (16 if gpu or model == "random" else 2)


@pytest.mark.parametrize(
    ("model", "data", "weights"),
    [
        ("random", "data/chats.jsonl", "--full"),
        ("plain", "data/questions.csv", "--lora"),
    ],
)
def test_what_is_written_trains(here, capsys, model, data, weights):
    assert main(["init", "first.yaml", "--model", model, "--data", data, weights]) == 0
    short = ["trainer.arguments.max_steps=2", "trainer.output_dir=out", "evaluation.samples.max_new_tokens=4"]
    assert main(["first.yaml", *short]) == 0, capsys.readouterr().err
    assert any("train/loss" in row for row in metrics_of(here / "out"))
    assert any("eval/loss" in row for row in metrics_of(here / "out"))
    if "chats" in data:
        table = next(line for line in capsys.readouterr().out.splitlines() if "chats.jsonl  " in line)
        assert 0 < int(table.split("%")[0].split()[-1]) < 80, "the answers alone are trained"


def test_turns_of_a_model_without_template_end_with_the_end_token(models):
    """Both answers of a chat are trained, each with the end token behind it, and nothing else."""
    from transformers import AutoTokenizer

    from dumbo.data.records import IGNORED, Conversation, Origin
    from dumbo.plugin_finder import find_plugin
    from dumbo.starting.starter import MANY_TURNS

    plugin = find_plugin("jinja_formatter", Path()).type
    options = plugin.train_formats["jinja_messages"](type="jinja_messages", template=MANY_TURNS, train_on_inputs=False)
    tokenizer = AutoTokenizer.from_pretrained(models / "plain")
    example = plugin().build_train_format(options, tokenizer)(
        Conversation(tuple(CHATS[0]["messages"]), Origin("chats", 1))
    )
    pairs = zip(example.input_ids, example.labels, strict=True)
    assert tokenizer.decode([token for token, label in pairs if label != IGNORED]) == (
        " Hello.<|im_end|> See you.<|im_end|>"
    )


def test_without_a_terminal_defaults_are_taken(here, capsys):
    assert main(["init"]) == 0
    config = written()
    assert config["model"] == {"base_model": "models/chat"} or config["model"] == {"base_model": "plain"}
    assert config["datasets"][0]["path"] == "alpaca.jsonl"
    assert config["trainer"]["data"]["val_set_size"] == 0.1
    said = capsys.readouterr().out
    assert "dumbo check run.yaml --rows" in said and "  dumbo run.yaml" in said


def test_an_empty_folder_gets_the_examples_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    assert main(["init", "--yes"]) == 0
    config = written()
    assert (config["model"]["base_model"], config["datasets"][0]["path"]) == (
        "HuggingFaceTB/SmolLM2-135M",
        "tatsu-lab/alpaca",
    )
    assert main(["check", "run.yaml"]) == 0


def test_a_file_is_not_overwritten(here, capsys):
    Path("run.yaml").write_text("mine")
    assert main(["init"]) == 2
    error = capsys.readouterr().err
    assert "run.yaml is there already" in error and "write dumbo init run-2.yaml" in error
    assert Path("run.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["notes.txt"], "must end in .yaml"),
        (["nowhere/run.yaml"], "there is no folder nowhere"),
        (["--model", "nowhere"], "neither a folder here nor a name on the hub"),
        (["--model", "data"], "is no folder of a language model"),
        (["--data", "nowhere.jsonl"], "no such file or folder"),
        (["--data", "odd.jsonl"], "no format fits the columns frage, antwort"),
        (["--model", "random", "--lora"], "write --full"),
        (["--held-out", "150%"], "neither a share below 1"),
        (["--held-out", "many"], "nor a number of rows"),
        (["--data", "alpaca.jsonl", "--held-out", "12"], "there are only 12 rows"),
        (["--tracker", "paper"], "there is no 'paper'"),
    ],
)
def test_a_wrong_flag_is_one_clear_line(here, capsys, words, said):
    builders.write_rows(Path("odd.jsonl"), [{"frage": "Wie?", "antwort": "So."}])
    before = sorted(here.iterdir())
    assert main(["init", *words]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert sorted(here.iterdir()) == before, "nothing was written"


def test_files_that_no_format_fits_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    builders.write_rows(Path("odd.jsonl"), [{"frage": "Wie?", "antwort": "So."}])
    assert main(["init", "--yes"]) == 2
    assert "odd.jsonl: no format fits the columns frage, antwort" in capsys.readouterr().err


def test_enter_takes_the_defaults(here, monkeypatch, capsys):
    answer(monkeypatch, "", "", "", "", "")
    assert main(["init", "asked.yaml"]) == 0
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert main(["init", "unasked.yaml"]) == 0
    assert written("asked.yaml") == written("unasked.yaml")
    said = capsys.readouterr().out
    assert "  1  models/chat" in said or "  1  plain" in said
    assert "fits alpaca (Question, Context, Answer)" in said


def test_wrong_answers_are_asked_again(here, monkeypatch, capsys):
    answer(monkeypatch, "nowhere", "99", "random weights", "gone.jsonl", "data/chats.jsonl", "all", "50", "25%", "none")
    assert main(["init"]) == 0
    config = written()
    assert config["model"]["architecture"]["model_type"] == "llama"
    assert config["datasets"][0] == {
        "path": "data/chats.jsonl",
        "type": "huggingface_polars",
        "data_format": "messages",
        "train_format": {"type": "chat_template", "train_on_inputs": False},
    }
    assert config["trainer"]["data"]["val_set_size"] == 0.25
    said = capsys.readouterr().out
    for complaint in (
        "'nowhere' is neither",
        "write a number from 1 to 4",
        "no such file",
        "'all' is neither",
        "only 20",
    ):
        assert complaint in said


def test_columns_with_names_of_their_own_are_asked_for(here, monkeypatch, capsys):
    builders.write_rows(Path("odd.jsonl"), [{"id": "1", "frage": f"Wie {n}?", "antwort": "So."} for n in range(12)])
    answer(monkeypatch, "plain", "odd.jsonl", "frage", "2", "", "0", "")
    assert main(["init"]) == 0
    data_format = written()["datasets"][0]["data_format"]
    assert data_format == {
        "type": "alpaca",
        "prompt": "plain",
        "field_instruction": "frage",
        "field_output": "antwort",
    }
    assert main(["check", "run.yaml", "--rows"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("given", [(), ("",), ("", "", "")])
def test_ctrl_c_writes_nothing(here, monkeypatch, given):
    before = sorted(here.rglob("*"))
    answer(monkeypatch, *given)
    assert main(["init"]) == 130
    assert sorted(here.rglob("*")) == before


def test_the_end_of_the_input_writes_nothing(here, monkeypatch, capsys):
    answer(monkeypatch, "")

    def end(prompt: str = "") -> str:
        raise EOFError

    monkeypatch.setattr(builtins, "input", end)
    assert main(["init"]) == 130
    assert capsys.readouterr().err == "nothing was written\n" and not Path("run.yaml").exists()


def test_models_of_the_cache_are_offered(here, models, monkeypatch):
    snapshot = here / "hub-home" / "hub" / "models--owner--cached" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(models / "chat")
    empty = here / "hub-home" / "hub" / "models--owner--empty" / "snapshots" / "abc"
    empty.mkdir(parents=True)
    assert [(model.name, model.has_chat_template) for model in cached_models()] == [("owner/cached", True)]
    found = named_model("owner/cached")
    assert not isinstance(found, str) and found.folder == snapshot


def test_an_adapter_and_an_encoder_are_no_models_to_start_from(here, models):
    import shutil

    for name, changes in (("encoder", {"architectures": ["BertForMaskedLM"]}), ("adapter", {})):
        shutil.copytree(models / "plain", here / name)
        config = json.loads((here / name / "config.json").read_text())
        (here / name / "config.json").write_text(json.dumps(config | changes))
    (here / "adapter" / "adapter_config.json").write_text("{}")
    assert isinstance(named_model("encoder"), str) and isinstance(named_model("adapter"), str)
    assert not isinstance(named_model("plain"), str)


def test_a_name_tells_size_and_kind():
    found = named_model("owner/Model-1.5B-Instruct")
    assert not isinstance(found, str)
    assert (found.num_bytes, found.has_chat_template, found.about) == (
        3_000_000_000,
        True,
        "about 3.0 GB to download, for chats, by its name",
    )
    assert [size_words(count) for count in (5, 999_600, 270e6, 1.5e12)] == ["5 B", "1.0 MB", "270 MB", "1.5 TB"]


def fits(*rows: dict) -> tuple[dict, str]:
    columns = tuple(dict.fromkeys(name for row in rows for name in row))
    texts = tuple(name for name in columns if all(isinstance(row.get(name), str) for row in rows))
    return fitting_format(rows, columns, texts)


def test_the_first_rows_say_which_format_fits():
    plain = {"type": "alpaca", "prompt": "plain"}
    assert fits({"instruction": "a", "output": "b"}, {"instruction": "a", "input": "c", "output": "b"})[0] == plain
    assert fits({"prompt": "a", "completion": "b"})[0] == plain | {
        "field_instruction": "prompt",
        "field_output": "completion",
    }
    assert "rename it to 'instruction'" in fits({"input": "a", "output": "b"})[1]
    assert "'input' is not text" in fits({"instruction": "a", "input": 3, "output": "b"})[1]
    turn = {"role": "assistant", "content": "x"}
    assert fits({"dialog": [turn]})[0] == {"type": "messages", "field_messages": "dialog"}
    asked, answered = {"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}
    conversations = {"type": "messages", "field_messages": "conversations"}
    assert fits({"conversations": [asked, answered]}, {"conversations": [asked, answered]})[0] == conversations
    assert "no message of the role 'assistant'" in fits({"conversations": [asked]})[1]
    assert fits({"conversations": [asked, {"from": "gpt"}]})[0] == {}
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add"}}]}
    assert fits({"messages": [call]})[0] == {"type": "messages"}
    assert "no message of the role 'assistant'" in fits({"messages": [{"role": "user", "content": "x"}]})[1]
    assert fits({"question": "a", "answer": 3})[0] == {}


def test_parquet_and_broken_files_are_looked_into(tmp_path):
    import polars

    polars.DataFrame({"query": ["a", "b"], "reply": ["c", "d"]}).write_parquet(tmp_path / "rows.parquet")
    assert peek(str(tmp_path / "rows.parquet")).data_format["field_output"] == "reply"
    (tmp_path / "rows.jsonl").write_text("no json\n")
    broken = peek(str(tmp_path / "rows.jsonl"))
    assert broken.data_format == {} and "rows.jsonl:1" in broken.problem


def test_nothing_heavy_is_imported_before_the_questions():
    assert loaded_by("import dumbo.cli.commands.init", "torch", "transformers", "pydantic", "polars", "yaml") == []
    assert loaded_by("import dumbo.starting.questions, dumbo.starting.writing", "torch", "transformers", "polars") == []
