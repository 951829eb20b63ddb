"""`generate` and `chat`: a prompt in, text out, by the run's own template."""

import io
import json
import shutil
import sys

import pytest
import torch
import yaml

from dumbo.cli.main import main
from dumbo.inference.opening import open_model
from tests import builders
from tests.run.whole_runs import SHIPPED, run_here, write_and_run

ANSWERS = {
    "datasets.0.train_format": {"type": "chat_template", "train_on_inputs": False},
    "trainer.arguments.max_steps": 30,
    "trainer.arguments.learning_rate": 2e-2,
}


@pytest.fixture(scope="module")
def learned(tmp_path_factory, model_folder):
    """A run that learned to answer YES, whatever it is asked."""
    folder = tmp_path_factory.mktemp("learned")
    rows = builders.write_rows(
        folder / "rows.jsonl", [{"instruction": f"Say {word}.", "output": "YES"} for word in "abcdefgh"]
    )
    return write_and_run(folder, model_folder, rows, ANSWERS)


def test_every_prompt_gets_its_answer(learned, capsys):
    assert main(["generate", str(learned), "Say a.", "Say q."]) == 0
    said = capsys.readouterr()
    assert said.out == "YES\nYES\n"
    assert said.err.splitlines() == [f"{learned / 'model'} on cpu, prompts by chat_template"]


def test_lines_of_the_input_are_prompts(learned, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Say a.\n\nSay b.\n"))
    assert main(["generate", str(learned)]) == 0
    assert capsys.readouterr().out == "YES\nYES\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert main(["generate", str(learned)]) == 2
    assert "there is nothing to ask" in capsys.readouterr().err


def test_raw_text_is_given_as_it_is(learned, capsys):
    assert main(["generate", str(learned), "--raw", "--max-new-tokens", "4", "Say a."]) == 0
    said = capsys.readouterr()
    assert "prompts by the text as it is" in said.err
    prompt = open_model(learned, raw=True).generator.prompt([{"role": "user", "content": "Say a."}])
    assert open_model(learned).generator.tokenizer.decode(prompt) == "Say a."


def test_the_best_of_what_a_run_left_is_opened(learned, tmp_path):
    assert open_model(learned / "model").format == "chat_template", "the run around a model is found"
    stopped = tmp_path / "stopped"
    for name in ("step-000002", "step-000010", "step-000010.partial"):
        (stopped / "checkpoints" / name).mkdir(parents=True)
        (stopped / "checkpoints" / name / "config.json").write_text("{}")
    from dumbo.inference.opening import find_model

    assert find_model(stopped).name == "step-000010"
    (stopped / "checkpoints" / "best").mkdir()
    (stopped / "checkpoints" / "best" / "config.json").write_text("{}")
    assert find_model(stopped).name == "best"


def test_a_model_without_a_run_is_asked_by_its_chat_template(model_folder, tmp_path):
    opened = open_model(model_folder)
    assert opened.format == "the tokenizer's chat template"
    prompt = opened.generator.prompt([{"role": "user", "content": "Hi"}])
    assert opened.generator.tokenizer.decode(prompt) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    plain = builders.save_tiny_model(tmp_path / "plain", builders.build_tokenizer(chat_template=None))
    assert open_model(plain).format == "the text as it is"


OWN = """
from dumbo.config.schema import FormatOptions
from dumbo.data.records import Example
from dumbo.plugin_loader import TrainFormatPlugin

class ShoutPlugin(TrainFormatPlugin):
    train_formats = {"shout": FormatOptions}

    def build_train_format(self, options, tokenizer):
        def encode(record):
            question, answer = record.messages[0]["content"], record.messages[-1]["content"]
            ids = tokenizer(question.upper() + "! " + answer, add_special_tokens=False)["input_ids"]
            return Example(ids, list(ids), record.origin)
        return encode
"""


def test_a_format_of_ones_own_is_found_from_the_run_s_folder(tmp_path, model_folder, rows_file, monkeypatch):
    (tmp_path / "own.py").write_text(OWN)
    plugins = ["transformers", "transformers_trainer", "polars", "jinja_formatter", "./own.py:ShoutPlugin"]
    changes = {"datasets.0.train_format": "shout", "plugins": plugins, "trainer.arguments.max_steps": 1}
    folder = write_and_run(tmp_path, model_folder, rows_file, changes)
    monkeypatch.chdir(tmp_path.parent)
    generator = open_model(folder).generator
    assert generator.tokenizer.decode(generator.prompt([{"role": "user", "content": "hi there"}])) == "HI THERE!"
    assert run_here(folder / "run.yaml", f"trainer.output_dir={tmp_path / 'again'}"), "and the run can be repeated"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nowhere"], "there is no folder 'nowhere'"),
        (["."], "'.' holds neither a run nor a model"),
        (["RUN", "x", "--top-p", "0.5"], "--top-p has no effect: at temperature 0 the likeliest token is taken"),
        (["RUN", "x", "--seed", "1"], "--seed has no effect"),
        (["RUN", "x", "--raw", "--system", "s"], "--system has no effect"),
        (["RUN", "x", "--max-new-tokens", "0"], "must be 1 or more"),
        (["RUN", "x", "--temperature", "warm"], "'warm' is no number"),
        (["RUN", "", "--raw"], "the prompt is empty"),
        (["RUN", "x" * 9000], "tokens, and the model takes 1024 with its answer"),
    ],
)
def test_what_cannot_be_done_is_said(learned, tmp_path, monkeypatch, capsys, words, expected):
    monkeypatch.chdir(tmp_path)
    try:
        code = main(["generate", *(str(learned) if word == "RUN" else word for word in words)])
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr()
    assert code == 2 and expected in said.err and "Traceback" not in said.err


def talk(folder, lines, monkeypatch, *words):
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(line + "\n" for line in lines)))
    return main(["chat", str(folder), "--temperature", "0", *words])


def test_a_chat_answers_until_it_is_ended(learned, monkeypatch, capsys):
    assert (
        talk(learned, ["Say a.", "/new", "/system Be brief.", "/what", "Say b.", "/quit", "Say c."], monkeypatch) == 0
    )
    said = capsys.readouterr().out
    assert said.count("YES") == 2, "nothing comes after /quit"
    assert said.count("/new forgets the conversation") == 2, "at the start, and for an unknown command"
    assert talk(learned, [], monkeypatch) == 0


def test_a_chat_remembers_its_turns(learned, monkeypatch, capsys):
    asked = []
    from dumbo.inference.generate import TextGenerator

    prompt = TextGenerator.prompt
    monkeypatch.setattr(TextGenerator, "prompt", lambda self, m: asked.append(list(m)) or prompt(self, m))
    assert talk(learned, ["Say a.", "Say b.", "/new", "Say c."], monkeypatch, "--system", "Be kind.") == 0
    turns = [[message["content"] for message in messages] for messages in asked]
    assert [turn for turn in turns if turn[0] == "Be kind." and turn[-1].startswith("Say")] == [
        ["Be kind.", "Say a."],
        ["Be kind.", "Say a.", "YES", "Say b."],
        ["Be kind.", "Say c."],
    ]


def test_a_format_of_single_questions_says_so(tmp_path, model_folder, rows_file, monkeypatch, capsys):
    template = "Q: {{ messages[0].content }}\nA: {{ messages[1].content }}"
    changes = {
        "datasets.0.train_format": {"type": "jinja_messages", "template": template},
        "trainer.arguments.max_steps": 1,
    }
    folder = write_and_run(tmp_path, model_folder, rows_file, changes)
    capsys.readouterr()
    assert talk(folder, ["Hi", "Ho"], monkeypatch, "--max-new-tokens", "3") == 0
    assert "every message stands for itself" in capsys.readouterr().out


def made_run(folder, model_folder, changes):
    """The folder of a run that ended with the weights it began with."""
    shutil.copytree(model_folder, folder / "model")
    tree = builders.run_config(model_folder, folder / "rows.jsonl", changes)
    (folder / "run.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    (folder / "summary.json").write_text("{}", encoding="utf-8")
    return folder


def test_a_format_that_wants_a_system_message_says_so_and_takes_one(tmp_path, model_folder, capsys):
    template = "{{ messages[0].content }}: {{ messages[1].content }} = {{ messages[2].content }}"
    written = {"datasets.0.train_format": {"type": "jinja_messages", "template": template}}
    folder = made_run(tmp_path / "run", model_folder, written)
    assert main(["generate", str(folder), "hello"]) == 2
    assert "the template refuses the conversation" in capsys.readouterr().err
    assert main(["generate", str(folder), "hello", "--system", "Be kind.", "--max-new-tokens", "2"]) == 0
    assert "prompts by jinja_messages" in capsys.readouterr().err


PLAIN = """
from dumbo.config.schema import FormatOptions
from dumbo.data.records import Example
from dumbo.plugin_loader import TrainFormatPlugin

class PlainPlugin(TrainFormatPlugin):
    train_formats = {"plain": FormatOptions}

    def build_train_format(self, options, tokenizer):
        def encode(record):
            ids = tokenizer(record.text)["input_ids"]
            return Example(ids, list(ids), record.origin)
        return encode
"""


def test_a_format_of_texts_writes_none_and_is_not_said_to(tmp_path, model_folder):
    changes = {"datasets.0.train_format": "plain", "plugins": ["./plain.py:PlainPlugin"]}
    folder = made_run(tmp_path / "run", model_folder, changes)
    (folder / "plain.py").write_text(PLAIN, encoding="utf-8")
    assert open_model(folder).format == "the text as it is"


def test_a_system_message_that_the_format_leaves_out_is_refused(tmp_path, model_folder, monkeypatch, capsys):
    template = "{% for m in messages if m.role != 'system' %}{{ m.content }} {% endfor %}"
    written = {"datasets.0.train_format": {"type": "jinja_messages", "template": template}}
    folder = made_run(tmp_path / "run", model_folder, written)
    assert main(["generate", str(folder), "hello", "--system", "Be kind."]) == 2
    expected = "a system message has no effect: jinja_messages leaves it out of the prompt"
    assert expected in capsys.readouterr().err
    assert talk(folder, ["/system Be kind.", "Hi"], monkeypatch, "--max-new-tokens", "2") == 0
    said = capsys.readouterr().out
    assert expected in said and "with this system message" not in said


def test_a_template_that_refuses_a_system_message_is_heard(tmp_path, capsys):
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    tokenizer = builders.build_tokenizer(chat_template=refusing + builders.CHATML)
    folder = builders.save_tiny_model(tmp_path / "model", tokenizer)
    assert main(["generate", str(folder), "hello", "--system", "Be kind."]) == 2
    assert "the chat template refuses these messages: no system here" in capsys.readouterr().err


def test_a_configuration_nearby_is_not_the_run_of_a_model(tmp_path, model_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = yaml.safe_dump(builders.run_config(model_folder, tmp_path / "rows.jsonl", {"plugins": ["./evil.py:Evil"]}))
    (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')", encoding="utf-8")
    for name in ("models/tiny", "tiny", "model"):
        folder = shutil.copytree(model_folder, tmp_path / name)
        assert open_model(folder).format == "the tokenizer's chat template", name
    (tmp_path / "metrics.jsonl").write_text("", encoding="utf-8")
    for name in ("models/tiny", "tiny"):
        assert open_model(tmp_path / name).format == "the tokenizer's chat template", f"a run, but not that of {name}"


def test_the_run_around_a_model_is_found_from_anywhere(tmp_path, model_folder, monkeypatch):
    folder = made_run(tmp_path / "run", model_folder, {})
    step = shutil.copytree(model_folder, folder / "checkpoints" / "step-000002")
    assert open_model(step).format == "jinja_messages"
    monkeypatch.chdir(folder / "model")
    (folder / "model" / "sub").mkdir()
    for path in (".", "sub/.."):
        assert main(["generate", path, "Hi", "--max-new-tokens", "1"]) == 0
    shutil.move(folder / "model", tmp_path / "elsewhere")
    (folder / "model").symlink_to(tmp_path / "elsewhere")
    assert open_model(folder).format == "jinja_messages"


def test_an_adapter_is_put_on_the_model_that_was_trained(tmp_path, model_folder, rows_file):
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM

    changes = {
        "plugins": [*SHIPPED, "peft"],
        "model.peft": {"rank": 4},
        "model.config_overrides": {"rms_norm_eps": 0.5, "rope_theta": 10.0},
    }
    folder = write_and_run(tmp_path, model_folder, rows_file, changes)
    config = AutoConfig.from_pretrained(model_folder)
    config.rms_norm_eps, config.rope_parameters = 0.5, {**config.rope_parameters, "rope_theta": 10.0}
    trained = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(model_folder, config=config), folder / "model"
    )
    ids = torch.arange(40)[None]
    for raw in (False, True):
        opened = open_model(folder, raw=raw).generator.model.to("cpu", torch.float32)
        assert torch.equal(opened(ids).logits, trained(ids).logits)


def test_code_that_comes_with_a_model_runs_by_the_flag_alone(tmp_path, model_folder, monkeypatch, capsys):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = made_run(tmp_path / "run", model_folder, {"model.trust_remote_code": True})
    file = folder / "model" / "config.json"
    auto_map = {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.MineLM"}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "mine", "auto_map": auto_map}))
    (folder / "model" / "mine.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class Mine(LlamaConfig):\n    model_type = 'mine'\n"
        "class MineLM(LlamaForCausalLM):\n    config_class = Mine\n"
    )
    assert main(["generate", str(folder), "Hi", "--max-new-tokens", "2"]) == 2
    said = capsys.readouterr().err
    assert "needs Python code of its own" in said and "write --trust-remote-code" in said
    assert main(["generate", str(folder), "Hi", "--max-new-tokens", "2", "--trust-remote-code"]) == 0
