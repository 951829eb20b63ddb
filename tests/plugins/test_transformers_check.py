"""The transformers plugin finds mistakes in names, folders, tokens and templates before anything is loaded."""

import json
import subprocess
import sys

import pytest

from dumbo.config.schema import ModelSection, TokenizerSection
from dumbo.errors import ConfigError
from dumbo.plugin_loader import ModelLoaderPlugin, TokenizerLoaderPlugin
from dumbo.plugins.transformers.plugin import TransformersPlugin
from tests import builders
from tests.plugins.transformers_runs import ChatFormat, run_config


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def folder(here):
    """What a check looks at: names and JSON, no weights."""
    made = here / "models" / "tiny"
    made.mkdir(parents=True)
    (made / "config.json").write_text('{"model_type": "llama"}')
    (made / "tokenizer.json").write_text("{}")
    return made


def problems(config, seats=None):
    plugin = TransformersPlugin()
    plugin.seats = seats or plugin.seats
    try:
        plugin.check(config)
    except ConfigError as error:
        return [str(problem) for problem in error.problems]
    return []


def test_good_names_pass(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parents[1]))
    for name in (str(folder), "./models/tiny", "models/tiny", "~/models/tiny", "HuggingFaceTB/SmolLM2-135M"):
        assert problems(run_config(base_model=name)) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (None, "model.base_model: a model to start from is missing"),
        ("", "model.base_model: a model to start from is missing"),
        ("gpt2", "model.base_model: 'gpt2' is neither a folder here nor a name on the hub, which is 'owner/name'"),
        ("models/tiny/x", "model.base_model: 'models/tiny/x' is neither a folder"),
        ("./models/tinny", "model.base_model: there is no folder './models/tinny'\n    did you mean 'models/tiny'?"),
        ("tiny", "    relative paths start at {here}; there is '{here}/models/tiny'"),
        ("./models/tiny/config.json", "is a file; write the folder that it lies in"),
        ("./models", "'./models' holds no config.json"),
        ("./stories", "model.base_model: there is no folder './stories'\n    relative paths start at {here}"),
        ("stories", "which is 'owner/name'\n    relative paths start at {here}"),
    ],
)
def test_bad_names_are_explained(folder, here, name, expected):
    found = problems(run_config(base_model=name))
    assert expected.format(here=here) in found[0]


def test_only_relative_paths_have_a_start(here):
    (found,) = problems(run_config(base_model=str(here / "stories")))
    assert found == f"model.base_model: there is no folder '{here / 'stories'}'"


def test_a_broken_config_is_named(folder):
    (folder / "config.json").write_text('{"model_type": ')
    assert "models/tiny/config.json is not valid JSON: " in problems(run_config(base_model="./models/tiny"))[0]
    (folder / "config.json").write_text("[]")
    assert "must hold a JSON object" in problems(run_config(base_model="./models/tiny"))[0]


def test_only_the_hub_has_revisions(folder):
    found = problems(run_config(base_model="models/tiny", revision="main"))
    assert found == [
        "model.revision: only the hub has revisions, and the base model is a local folder; leave 'revision' out"
    ]
    assert problems(run_config(base_model="owner/name", revision="main")) == []


def test_a_folder_without_tokenizer_needs_another_one(folder, here):
    (folder / "tokenizer.json").rename(here / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    found = problems(run_config(base_model="models/tiny"))
    assert found[0].startswith("model.base_model: 'models/tiny' holds no tokenizer")
    assert problems(run_config(base_model="models/tiny", tokenizer={"path": "."})) == []
    assert problems(run_config(base_model="models/tiny"), frozenset({ModelLoaderPlugin})) == []
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    assert problems(run_config(base_model="models/tiny")) == []


def test_the_path_of_a_tokenizer_is_checked_like_a_model(folder, here):
    found = problems(run_config(base_model="models/tiny", tokenizer={"path": "./models/tinny"}))
    assert [line.strip() for line in found[0].splitlines()] == [
        "model.tokenizer.path: there is no folder './models/tinny'",
        "did you mean 'models/tiny'?",
        f"relative paths start at {here}",
    ]
    assert problems(run_config(base_model="models/tiny", tokenizer={"path": ""})) == ["model.tokenizer.path: is empty"]


def test_a_model_made_by_another_plugin_needs_no_base_model(folder):
    assert problems(run_config(tokenizer={"path": "models/tiny"}), frozenset({TokenizerLoaderPlugin})) == []


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        ({"pad_token": ""}, ["model.tokenizer.pad_token: a token cannot be empty"]),
        ({"special_tokens": ["<a>", "", "<a>"]}, ["a token cannot be empty", "'<a>' is listed 2 times"]),
        ({"tokens": ["x", "x"]}, ["model.tokenizer.tokens: 'x' is listed 2 times"]),
        ({"tokens": ["x"], "special_tokens": ["x"]}, ["'x' is an ordinary token here and a special one in 'special_t"]),
        ({"tokens": ["x"], "eos_token": "x"}, ["'x' is an ordinary token here and a special one in 'eos_token'"]),
        ({"special_tokens": ["x"], "eos_token": "x", "pad_token": "x"}, []),
    ],
)
def test_tokens_that_contradict_are_errors(folder, tokenizer, expected):
    found = problems(run_config(base_model="models/tiny", tokenizer=tokenizer))
    assert len(found) == len(expected)
    assert all(part in text for part, text in zip(expected, found, strict=True))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ messages[0].content }}", None),
        (builders.CHATML_WITH_GENERATION, None),
        ("{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m }}{% endfor %}", None),
        (
            "{% for m in messages %}{{ m.content }}",
            "the template is not valid Jinja: line 1: Unexpected end of template",
        ),
        ("chatml.jinja", None),
        ("broken.jinja", "the template 'broken.jinja' is not valid Jinja: line 2: unexpected '}'"),
        ("missing.jinja", "the file 'missing.jinja' cannot be read: No such file or directory"),
        ("chatml", None),
        ("chatlm", "is neither a named template, nor Jinja, nor the path of a .jinja file"),
    ],
)
def test_templates_are_checked(folder, here, template, expected):
    (here / "chatml.jinja").write_text(builders.CHATML)
    (here / "broken.jinja").write_text("{# two lines #}\n{{ } }}")
    found = problems(run_config(base_model="models/tiny", tokenizer={"chat_template": template}))
    assert (found == []) if expected is None else found[0].startswith(f"model.tokenizer.chat_template: {expected}")


def test_a_format_that_needs_a_chat_template_finds_one_or_says_so(folder):
    def found(**tokenizer):
        return problems(run_config(ChatFormat, base_model="models/tiny", tokenizer=tokenizer))

    assert found()[0].startswith(
        "datasets.0.train_format: needs a chat template, and the tokenizer has none\n    model."
    )
    assert found(chat_template="{{ messages }}") == []
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": builders.CHATML}))
    assert found() == []
    (folder / "tokenizer_config.json").unlink()
    (folder / "chat_template.jinja").write_text(builders.CHATML)
    assert found() == []
    (folder / "chat_template.jinja").unlink()
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "default.jinja").write_text(builders.CHATML)
    assert found() == []


def test_every_key_of_the_schema_is_used():
    of_the_run = {"model.unfrozen_parameters"}
    keys = {f"model.{name}" for name in ModelSection.model_fields} - of_the_run
    assert keys | {f"model.tokenizer.{name}" for name in TokenizerSection.model_fields} == TransformersPlugin.consumes


def test_all_problems_come_at_once(folder):
    config = run_config(
        ChatFormat, base_model="models/tiny", revision="v1", tokenizer={"pad_token": "", "tokens": ["a", "a"]}
    )
    keys = [text.partition(":")[0] for text in problems(config)]
    assert keys == ["model.revision", "model.tokenizer.pad_token", "model.tokenizer.tokens", "datasets.0.train_format"]


def test_the_check_imports_no_heavy_library(folder):
    code = (
        "import sys\n"
        "from tests.plugins.transformers_runs import new_plugin, run_config\n"
        "new_plugin().check(run_config(base_model='models/tiny', tokenizer={'chat_template': '{{ 1 }}'}))\n"
        "print([name for name in ('torch', 'transformers', 'huggingface_hub') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(builders.ROOT)!r})\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"
