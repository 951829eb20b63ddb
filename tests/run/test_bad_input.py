"""Bad input, as a user meets it: exit code 2, a message with the place and the way out, and nothing left behind."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dumbo.cli.composed import composed_model
from dumbo.cli.main import main
from dumbo.config.options import all_options
from dumbo.plugin_finder import find_installed
from dumbo.plugin_interfaces import INTERFACES
from dumbo.run_folder import yaml_text
from tests import builders

OPTIONS = all_options(composed_model())
FORMATS = {"chat_template": {}, "jinja_messages": {"template": "{{ messages[0].content }}"}}
SHIPPED = ["transformers", "transformers_trainer", "polars", "jinja_formatter"]
INSTALLED = [plugin for plugin in find_installed()[0] if plugin.name not in SHIPPED]
SECTIONS = {plugin.type.section: plugin.name for plugin in INSTALLED if plugin.type.section}
READERS = {reader: plugin.name for plugin in INSTALLED for reader in getattr(plugin.type, "readers", {})}


@pytest.fixture
def write(tmp_path, model_folder, rows_file, monkeypatch):
    """Writes `run.yaml` with changes into the current folder, with other files beside it; its run would go to `out`."""
    monkeypatch.chdir(tmp_path)

    def write_file(changes=None, **files):
        for name, text in files.items():
            kind = "jsonl" if name.startswith("rows") else "py"
            Path(f"{name}.{kind}").write_text(text, encoding="utf-8")
        changes = {"trainer.output_dir": "out", **(changes or {})}
        Path("run.yaml").write_text(yaml_text(builders.run_config(model_folder, rows_file, changes)), encoding="utf-8")

    return write_file


@pytest.fixture
def refuse(capsys):
    """Runs a command that must be refused; returns what was said."""

    def run(*words, verb="train"):
        before = {path for path in Path().rglob("*") if "__pycache__" not in path.parts}
        assert main([verb, "run.yaml", *words]) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        after = {path for path in Path().rglob("*") if "__pycache__" not in path.parts}
        assert after == before, "nothing is left behind"
        return said

    return run


def line_of(key, nth=1):
    """Where a key stands in `run.yaml`."""
    lines = Path("run.yaml").read_text(encoding="utf-8").splitlines()
    found = [number for number, line in enumerate(lines, 1) if line.strip(" -").startswith(f"{key}:")]
    return f"run.yaml:{found[nth - 1]}:"


def with_parents(option):
    """Changes that make a configuration in which `option` may stand, and its dotted key there."""
    key = option.key.replace("datasets.", "datasets.0.", 1)
    changes = {}
    owner = SECTIONS.get(".".join(key.split(".")[:2]))
    reader = option.when.removeprefix("type: ")
    if key.startswith("datasets.0.") and reader in READERS:
        owner, changes["datasets.0.type"] = READERS[reader], reader
        if reader == "synthetic":
            changes["datasets.0.path"] = builders.REMOVE
    if owner:
        changes["plugins"] = [*SHIPPED, owner]
    for kind in ("data_format", "train_format"):
        if key.startswith(f"datasets.0.{kind}."):
            name = option.when.removeprefix("type: ") or ("alpaca" if kind == "data_format" else "chat_template")
            name = name if name != "huggingface_polars" else "alpaca" if kind == "data_format" else "chat_template"
            changes[f"datasets.0.{kind}"] = {"type": name, **FORMATS.get(name, {})}
    return changes, key


def misspelled(name):
    """The name with two neighbouring letters swapped."""
    for index in range(len(name) - 2, -1, -1):
        if name[index] != name[index + 1]:
            return name[:index] + name[index + 1] + name[index] + name[index + 2 :]
    raise ValueError(name)


def option_id(option):
    return f"{option.key} {option.when}".strip()


@pytest.mark.parametrize("option", builders.thinned(OPTIONS, 3), ids=option_id)
def test_a_misspelled_key_at_every_level(write, refuse, option):
    changes, key = with_parents(option)
    parent, _, name = key.rpartition(".")
    wrong = misspelled(name)
    write(changes | {f"{parent}.{wrong}" if parent else wrong: None})
    said = refuse(verb="check")
    assert f"{line_of(wrong)}" in said
    assert f"{parent}.{wrong}: unknown option".lstrip(".") in said
    hints = said.partition("unknown option\n")[2].splitlines()[0]
    assert name in hints or "dumbo explain" in hints, hints


@pytest.mark.parametrize("option", builders.thinned(OPTIONS, 3), ids=option_id)
def test_a_wrong_type_for_every_option(write, refuse, option):
    changes, key = with_parents(option)
    wrong = 3 if option.is_section or "a mapping" in option.takes else {"strange": [1]}
    write(changes | {key: wrong})
    said = refuse(verb="check")
    assert line_of(option.name) in said or "run.yaml:" in said.splitlines()[0]
    assert f" {key}" in said
    assert any(words in said for words in ("expected ", "is called '", "needs a 'type'"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, "fast", "1e-4", None, True, [1e-4]], ids=str)
def test_a_learning_rate_that_is_none(write, refuse, value):
    write({"trainer.arguments.learning_rate": value})
    said = refuse()
    assert said.startswith(
        f"{line_of('learning_rate')}5: trainer.arguments.learning_rate: expected a number of at least 0"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"model:\n\tbase_model: x\n", "run.yaml:2:1: indented with a tab\n    YAML is indented with spaces"),
        (b"", "run.yaml: the file is empty"),
        (b"# a comment\n", "run.yaml: the file is empty"),
        (b"- model\n", "run.yaml:1:1: expected a mapping, got a list"),
        (b"caf\xe9\n", "run.yaml:1:4: not a text file in UTF-8\n    save the file as UTF-8"),
        (b"\x89PNG\r\n\x1a\n\x00", "run.yaml: not a text file in UTF-8"),
        (b"a: \x01\n", "run.yaml:1: not a text file: it holds control characters"),
        (b"model: {\n", "run.yaml:1:8: not valid YAML: the bracket opened here is never closed"),
    ],
)
def test_a_file_that_is_no_configuration(write, refuse, text, expected):
    write()
    Path("run.yaml").write_bytes(text)
    assert refuse().startswith(expected)


def test_a_duplicate_key(write, refuse):
    write()
    text = Path("run.yaml").read_text()
    Path("run.yaml").write_text(text + "model: {base_model: other}\n")
    said = refuse()
    assert said.startswith(
        f"{line_of('model', 2)}1: model: this key is written twice\n    it stands at run.yaml:1:1 already"
    )


def test_a_file_that_is_missing_or_a_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("run.yml").write_text("a: 1\n")
    assert main(["train", "run.yaml"]) == 2
    assert capsys.readouterr().err == "run.yaml: there is no such file\n    did you mean run.yml?\n"
    Path("folder.yaml").mkdir()
    assert main(["folder.yaml"]) == 2
    assert capsys.readouterr().err == "folder.yaml is a folder; name the YAML file in it\n"


ROWS = [json.dumps(row) for row in builders.alpaca_rows(5)]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([*ROWS[:2], '{"instruction": "x", ', *ROWS[2:]], "rows.jsonl:3"),
        ([*ROWS[:2], "not json", *ROWS[2:]], "rows.jsonl:3"),
        ([*ROWS[:2], '["a", "b"]', *ROWS[2:]], "rows.jsonl:3"),
        ([*ROWS[:3], '{"instruction": "x"}', *ROWS[3:]], "rows.jsonl:4: no column 'output'"),
        ([*ROWS[:3], '{"instruction": "x", "output": 3}', *ROWS[3:]], "rows.jsonl:4: 'output' is the number 3"),
        ([], "rows.jsonl"),
        (["\x00\x01\x02PK\x03"], "rows.jsonl"),
    ],
    ids=["cut off", "no JSON", "a list", "no field", "wrong type", "empty", "binary"],
)
def test_rows_that_cannot_be_used(write, refuse, rows, expected):
    write({"datasets.0.path": "rows.jsonl"}, rows="".join(f"{row}\n" for row in rows))
    assert expected in refuse().splitlines()[0]
    assert expected in refuse("--rows", verb="check").splitlines()[0]


def test_rows_that_are_not_there(write, refuse):
    write({"datasets.0.path": "rosw.jsonl"}, rows="{}\n")
    said = refuse()
    assert said.startswith(f"{line_of('path')}")
    assert "'rows.jsonl'" in said


def test_a_chat_template_that_is_missing_or_broken(write, refuse, tmp_path, capsys):
    bare = builders.save_tiny_model(tmp_path / "bare", builders.build_tokenizer(chat_template=None))
    capsys.readouterr()  # the progress bar of saving
    write({"model.base_model": str(bare), "datasets.0.train_format": "chat_template"})
    said = refuse()
    assert said.startswith(f"{line_of('train_format')}3: datasets.0.train_format: needs a chat template")
    write({"model.tokenizer.chat_template": "{% for message in messages %}"})
    said = refuse()
    assert said.startswith(
        f"{line_of('chat_template')}5: model.tokenizer.chat_template: the template is not valid Jinja"
    )
    write({"datasets.0.train_format.template": "{% for message in messages %}{{ message.content "})
    assert refuse().startswith(f"{line_of('template')}5: datasets.0.train_format.template: ")


RAISES = """\
from dumbo.plugin_loader import *


class MinePlugin({}):
    {}
    def {}(self, *a, **k):
        raise KeyError('x')
"""


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["transfomers"],
            "run.yaml:34:3: plugins.4: no plugin is called 'transfomers'\n    did you mean 'transformers'?",
        ),
        (["polars"], "run.yaml:34:3: plugins.4: 'polars' is listed twice\n    remove one of them"),
        (
            ["./mine.py:MinePlugin", "./mine.py:MinePlugin"],
            "run.yaml:35:3: plugins.5: './mine.py:MinePlugin' is listed",
        ),
        (["./nope.py:Mine"], "run.yaml:34:3: plugins.4: there is no file nope.py"),
        (
            ["./mine.py:MinPlugin"],
            "run.yaml:34:3: plugins.4: mine.py has no class 'MinPlugin'\n    did you mean 'MinePlugin'?",
        ),
        (["./syntax.py:Mine"], "run.yaml:34:3: plugins.4: the plugin './syntax.py:Mine' cannot be imported: "),
        (
            ["./raising.py:Mine"],
            "run.yaml:34:3: plugins.4: the plugin './raising.py:Mine' cannot be imported: ValueError",
        ),
        (
            ["./lacking.py:Mine"],
            "run.yaml:34:3: plugins.4: the plugin './lacking.py:Mine' cannot be imported: ModuleNotFo",
        ),
        (
            ["./mine.py:MinePlugin", "./twin.py:TwinPlugin"],
            "plugins.5: 'mine', 'twin' all want to be the one plugin with",
        ),
    ],
    ids=lambda value: str(value)[:50],
)
def test_plugins_that_cannot_be_had(write, refuse, names, expected):
    mine = RAISES.format("LossPlugin", "", "build_loss")
    files = {
        "mine": mine,
        "twin": mine.replace("Mine", "Twin"),
        "syntax": "class Mine(\n",
        "raising": "raise ValueError('x')\n",
        "lacking": "import no_such_package\n",
    }
    write({"plugins": [*SHIPPED, *names], "trainer.seed": builders.REMOVE, "trainer.data.shuffle": True}, **files)
    place, _, what = expected.partition(": ")
    said = refuse()
    assert expected.partition("plugins.")[2] in said
    assert said.startswith(line_of("plugins").rpartition(":")[0].rpartition(":")[0])


TABLES = {"read": "readers", "build_data_format": "data_formats", "build_train_format": "train_formats"}
ENTRIES = {
    "read": {"datasets.0": {"type": "mine", "data_format": "alpaca", "train_format": "chat_template"}},
    "build_data_format": {"datasets.0.data_format": "mine"},
    "build_train_format": {"datasets.0.train_format": "mine"},
}
IN_A_RUN = [interface for interface in INTERFACES if interface.hook != "run_command"]


@pytest.mark.parametrize("interface", IN_A_RUN, ids=lambda interface: interface.hook)
def test_a_plugin_that_raises_in_each_hook(write, capsys, interface):
    table = TABLES.get(interface.hook)
    options = "Section" if table == "readers" else "FormatOptions"
    text = RAISES.format(interface.type.__name__, f"{table} = {{'mine': {options}}}" if table else "", interface.hook)
    plugins = [*SHIPPED, "./mine.py:MinePlugin"]
    if interface.hook == "build_trainer":
        plugins.remove("transformers_trainer")
    held_out = {"trainer.data.val_set_size": 4} if interface.hook == "build_evaluator" else {}
    write({"plugins": plugins, **ENTRIES.get(interface.hook, {}), **held_out}, mine=text)
    assert main(["train", "run.yaml"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert f"plugin 'mine' failed in {interface.hook}: KeyError: 'x' (mine.py:7)" in said.replace(f"{Path.cwd()}/", "")
    if interface.hook != "after_train":
        assert not Path("out").exists(), "a run that trained nothing leaves nothing"


def test_a_plugin_that_raises_when_it_is_made_or_checks(write, refuse):
    for method in ("__init__", "check"):
        write({"plugins": [*SHIPPED, "./mine.py:MinePlugin"]}, mine=RAISES.format("BasePlugin", "", method))
        if method == "check":
            assert "plugins.4: plugin 'mine' failed in check: KeyError: 'x' (" in refuse()
    text = RAISES.format("LoggingPlugin", "get_metrics_collector = print", "__init__")
    write({"plugins": [*SHIPPED, "./made.py:MinePlugin"]}, made=text)
    assert "plugins.4: plugin 'mine' cannot be made: KeyError: 'x' (" in refuse()


FAULTY = """\
import sys
from dumbo.config.schema import FormatOptions
from dumbo.config.section import Section
from dumbo.data.records import Example, Origin, Row, Text
from dumbo.metrics import MetricsCollector
from dumbo.plugin_loader import *


class MinePlugin(BasePlugin):
    readers = {"mine": Section}
    data_formats = train_formats = {"mine": FormatOptions}
    HOOK
"""
LOSS = "def build_loss(self, config, tokenizer):\n        import torch\n        return lambda "
COLLECTOR = "def get_metrics_collector(self):\n        "
FORMAT = "def build_train_format(self, options, tokenizer):\n        return lambda record: "
ROW = "rows.jsonl:1: the plugin 'mine' made an example with "
PATCHER = "def patch_model(self, model, config):\n        "


@pytest.mark.parametrize(
    ("hook", "expected"),
    [
        (
            PATCHER + "pass",
            "plugin 'mine': patch_model returned None; it must return the model (did you forget 'return'?)",
        ),
        (PATCHER + "return 3", "plugin 'mine': patch_model returned an int; it must return the model"),
        (PATCHER + "sys.exit(3)", "plugin 'mine' ended the program in patch_model (sys.exit(3), mine.py:13)"),
        (
            PATCHER + "return model.requires_grad_(False)",
            "no parameter is trained: none is left with requires_grad; loo",
        ),
        (
            PATCHER + "config.trainer.seed = 3",
            "plugin 'mine' failed in patch_model: the configuration cannot be changed (it set 'seed') (mine.py:13)",
        ),
        (
            "def get_callbacks(self, config):\n        from transformers import TrainerCallback\n"
            "        return TrainerCallback()",
            "get_callbacks returned one callback; it must return a list of TrainerCallbacks: write [TrainerCallback(",
        ),
        (
            "def get_callbacks(self, config): return [3]",
            "plugin 'mine': get_callbacks returned a list with an int; it mu",
        ),
        (
            "def load_kwargs(self, config): return 'eager'",
            "plugin 'mine': load_kwargs returned a str; it must return a m",
        ),
        (
            LOSS + "model, batch, num_items: None",
            "plugin 'mine': the loss returned None; it must return a scalar tensor",
        ),
        (
            LOSS + "model, batch, num_items: 1.0",
            "plugin 'mine': the loss returned a float; it must return a scalar tensor",
        ),
        (
            LOSS + "model, batch, num_items: torch.zeros(())",
            "plugin 'mine': the loss returned a tensor without gradient",
        ),
        (
            LOSS + "model, batch, num_items: torch.zeros(2)",
            "plugin 'mine': the loss returned a tensor of the shape [2]",
        ),
        (
            LOSS + "model, batch: None",
            "plugin 'mine': the loss takes (model, batch) (mine.py:14), must take (model, batch,",
        ),
        (
            COLLECTOR + "return MetricsCollector()",
            "plugin 'mine': its collector MetricsCollector has no method log_metrics",
        ),
        (
            COLLECTOR + "return MetricsCollector",
            "returned the class MetricsCollector; it must return a MetricsCollector: w",
        ),
        (FORMAT + "Example([1, 2], [1], record.origin)", ROW + "2 token ids and 1 labels; each token has one label"),
        (FORMAT + "Example([], [], record.origin)", ROW + "no tokens"),
        (
            FORMAT + "Example([1, 9999], [1, 1], record.origin)",
            ROW + "the token id 9999; the model has embeddings for 0 to",
        ),
        (FORMAT + "Example([1, -5], [1, 1], record.origin)", ROW + "the token id -5"),
        (
            FORMAT + "{}",
            "plugin 'mine': what build_train_format returned made a dict of a row; it must make an Example",
        ),
        (
            "def build_data_format(self, options): return lambda row: 'text'",
            "plugin 'mine': what build_data_format returned made a str of a row; it must make a record",
        ),
        (
            "def read(self, options): yield {'text': 'a'}",
            "plugin 'mine': read yielded a dict; yield Row(values, Origin(file, number))",
        ),
        (
            "def read(self, options): pass",
            "plugin 'mine': read returned None; it must yield rows (did you forget 'yield'?)",
        ),
    ],
)
def test_what_a_plugin_may_not_return_or_do(write, capsys, hook, expected):
    entry = ENTRIES.get(hook.partition("(")[0].removeprefix("def "), {})
    write({"plugins": [*SHIPPED, "./mine.py:MinePlugin"], **entry}, mine=FAULTY.replace("HOOK", hook))
    assert main(["train", "run.yaml"]) == 2
    said = capsys.readouterr().err.replace(f"{Path.cwd()}/", "")
    assert "Traceback" not in said
    assert "src/dumbo" not in said
    assert expected in said


def test_a_verb_that_raises(tmp_path, monkeypatch, capsys):
    info = tmp_path / "verbs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: verbs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dumbo.plugins]\nmine = dumbo_test_verbs:MinePlugin\n")
    text = RAISES.format("CommandPlugin", "commands = {'shout': 'Shouts.'}", "run_command")
    (tmp_path / "dumbo_test_verbs.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["shout"]) == 2
    assert capsys.readouterr().err.startswith("the verb 'shout' failed: KeyError: 'x' (")
    assert main(["shuot"]) == 2
    assert "did you mean 'dumbo shout'?" in capsys.readouterr().err
    del sys.modules["dumbo_test_verbs"]


def test_a_verb_that_returns_nothing_or_is_dumbo_s_own_or_cannot_be_imported(tmp_path, monkeypatch, capsys):
    info = tmp_path / "verbs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: verbs\nVersion: 1.0\n")
    entries = "mine = dumbo_test_verbs:MinePlugin\nbroken = dumbo_broken_verbs:Mine\n"
    (info / "entry_points.txt").write_text(f"[dumbo.plugins]\n{entries}")
    text = RAISES.format("CommandPlugin", "commands = {'shout': 'Shouts.', 'check': 'Checks.'}", "run_command")
    (tmp_path / "dumbo_test_verbs.py").write_text(text.replace("raise KeyError('x')", "pass"))
    (tmp_path / "dumbo_broken_verbs.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert main(["shout"]) == 2
    assert capsys.readouterr().err.startswith("plugin 'mine': run_command returned None; it must return the exit code")
    assert main(["count"]) == 2
    assert "the plugin 'broken' cannot be imported: ZeroDivisionError" in capsys.readouterr().err
    assert main(["plugins"]) == 0
    listed = capsys.readouterr()
    assert "verb       dumbo shout: Shouts." in listed.out
    assert "plugin 'mine' brings the verb 'check', which is dumbo's own and never reaches it" in listed.err
    del sys.modules["dumbo_test_verbs"]


def test_batch_sizes_that_do_not_divide(write, refuse):
    write({"trainer.arguments.batch_size": 7, "trainer.arguments.physical_batch_size": 2})
    said = refuse()
    assert said.startswith(f"{line_of('batch_size')}5: trainer.arguments.batch_size: 7 sequences cannot be made of 2")
    assert "write batch_size: 6 or 8" in said
    assert "or physical_batch_size: 1" in said


def test_an_output_folder_that_cannot_be_written_or_holds_a_run(write, refuse):
    Path("file").write_text("")
    for folder in ("file", "file/below"):
        write({"trainer.output_dir": folder})
        said = refuse()
        assert said.startswith(
            f"{line_of('output_dir')}3: trainer.output_dir: the run's folder {folder} cannot be written"
        )
    names = ("metrics.jsonl", "model", "checkpoints", "run.yaml", "summary.json", "samples.jsonl", "report.html")
    for name in (*names, "loss.png"):
        folder = Path("runs", name)
        (folder / name).mkdir(parents=True)
        write({"trainer.output_dir": str(folder)})
        for verb in ("train", "check"):
            said = refuse(verb=verb)
            assert said.startswith(line_of("output_dir"))
            assert f"trainer.output_dir: {folder} already holds a run (it has '{name}')" in said


def test_every_mistake_of_a_command_line_is_said_at_once(write, refuse):
    write()
    said = refuse("trainer.seed=x", "trainer.nothing.more=1", "just-a-word")
    about = [line.split(": ")[1] for line in said.splitlines() if line.startswith("command line: ")]
    assert sorted(about) == ["'just-a-word' is not an override", "trainer.nothing", "trainer.seed"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run.yaml", "--learning_rate", "3"], "write trainer.arguments.learning_rate=3"),
        (["train", "run.yaml", "--learning-rate=3"], "write trainer.arguments.learning_rate=3"),
        (
            ["run.yaml", "--path", "x"],
            "write model.tokenizer.path=x or datasets.0.path=x or trainer.kd.teacher.path=x",
        ),
        (["run.yaml", "--per_device_train_batch_size", "4"], "write physical_batch_size"),
        (["--config", "ok.yaml"], "write dumbo ok.yaml"),
        (["check", "--config=ok.yaml"], "write dumbo check ok.yaml"),
        (["check", "run.yaml", "--row"], "did you mean '--rows'?"),
        (["check", "run.yaml", "--qqq"], "'dumbo check --help' lists the flags; options are written section.key=value"),
    ],
    ids=" ".join,
)
def test_flags_of_other_tools_are_told_what_to_write(capsys, words, expected):
    assert main(words) == 2
    first, hint = capsys.readouterr().err.splitlines()
    assert first.startswith("dumbo has no flag '--")
    assert hint == f"    {expected}"


def test_a_command_without_its_file_asks_for_nothing_else(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["check"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[0] == "dumbo check: the following arguments are required: config"


def test_mistakes_are_found_before_torch_is_imported(tmp_path, model_folder, rows_file):
    """One process for all: what is imported for one stays for the others."""
    (tmp_path / "rows.jsonl").write_text('{"instruction": "x"}\n')
    (tmp_path / "mine.py").write_text(RAISES.format("LossPlugin", "", "build_loss"))
    changes = [
        {"trainer.arguments.learning_rte": 1},
        {"trainer.arguments.learning_rate": "fast"},
        {"trainer.arguments.batch_size": 3},
        {"plugins": [*SHIPPED, "nobody"]},
        {"plugins": [*SHIPPED, "./mine.py:MinePlugin", "./mine.py:MinePlugin"]},
        {"datasets.0.path": str(tmp_path / "rows.jsonl")},
        {"datasets.0.path": str(tmp_path / "nothing.jsonl")},
        {"model.base_model": str(tmp_path / "no-model")},
        {"model.tokenizer.chat_template": "{% for x"},
        {"datasets.0.train_format.template": "{% for x"},
        {"trainer.output_dir": str(tmp_path / "rows.jsonl")},
    ]
    for number, change in enumerate(changes):
        builders.write_config(tmp_path, model_folder, rows_file, change, name=f"{number}.yaml")
    program = (
        "import sys\n"
        "from dumbo.cli.main import main\n"
        f"for number in range({len(changes)}):\n"
        "    status = main(['train', f'{number}.yaml'])\n"
        "    print('case', number, status, 'torch' in sys.modules, 'transformers' in sys.modules)\n"
    )
    (tmp_path / "program.py").write_text(program)
    result = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env=builders.clean_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in result.stderr, result.stderr
    answers = [line for line in result.stdout.splitlines() if line.startswith("case ")]
    assert answers == [f"case {number} 2 False False" for number in range(len(changes))]
    assert not (tmp_path / "out").exists()
