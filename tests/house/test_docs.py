"""What the documentation shows is run: every Python file, configuration, message, command and key in it."""

import ast
import itertools
import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from dumbo.cli.composed import composed_model
from dumbo.cli.main import VERBS, main
from dumbo.cli.plugin_verbs import brought_verbs
from dumbo.config.options import all_options
from dumbo.config.yaml_tree import parse_yaml
from dumbo.plugin_finder import find_installed
from tests import builders

PACKAGE = builders.ROOT / "src" / "dumbo"
PAGES = [builders.ROOT / "README.md", *sorted(PACKAGE.glob("docs/*.md")), *sorted(PACKAGE.glob("plugins/*/README.md"))]
GUIDE = PACKAGE / "docs" / "plugins.md"
QUICKSTART = PACKAGE / "docs" / "quickstart.md"
SECTIONS = ("model", "datasets", "trainer", "plugins", "evaluation")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the `title=` behind it, the line it starts at, and what it holds."""

    language: str
    title: str
    line: int
    text: str


def blocks(page: Path) -> list[Block]:
    found, lines, opened = [], [], None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.startswith("```"):
            lines.append(line)
        elif opened is None:
            opened, lines = (number, line[3:]), []
        else:
            start, info = opened
            language, _, title = info.partition(" title=")
            found.append(Block(language, title, start, "\n".join(lines) + "\n"))
            opened, lines = None, []
    assert opened is None, f"{page}:{opened} is not closed"
    return found


def page_id(page: Path) -> str:
    return page.stem if page.parent.name == "docs" else f"{page.parent.name}-{page.stem}"


pages = pytest.mark.parametrize("page", PAGES, ids=page_id)


@pytest.fixture
def folder(tmp_path, monkeypatch, model_folder) -> Path:
    """A folder with what the examples name: a model, rows, and a set environment."""
    monkeypatch.chdir(tmp_path)
    builders.write_rows(tmp_path / "train.jsonl", builders.alpaca_rows(8))
    (tmp_path / "data" / "part").mkdir(parents=True)
    chats = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}]
    builders.write_rows(tmp_path / "chats.jsonl", chats * 4)
    (tmp_path / "questions.txt").write_text("What is two and two? | Four.\nWhat is one and one? | Two.\n")
    builders.write_rows(tmp_path / "data" / "part" / "chats.jsonl", chats)
    (tmp_path / "chatml.jinja").write_text(builders.CHATML)
    (tmp_path / "my-model").symlink_to(model_folder)
    (tmp_path / "examples").symlink_to(builders.ROOT / "examples")
    return tmp_path


def whole_run(added: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """`config` with a fragment of a page laid over it; `...` in its list of plugins stands for those of `config`."""
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    for key, value in added.items():
        if key == "plugins":
            own = [name for name in config[key] if name not in value]
            result[key] = [name for item in value for name in (own if item == "..." else [item])]
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = whole_run(value, result[key])
        else:
            result[key] = value
    return result


def base_config() -> dict[str, Any]:
    return builders.run_config(Path("my-model"), Path("train.jsonl"))


def fragments(page: Path, folder: Path) -> Iterator[tuple[Block, dict[str, Any]]]:
    """The configurations of a page in their order, each whole; files that it shows are written on the way."""
    for block in blocks(page):
        if block.title and block.language in ("python", "yaml", "json", "jinja"):
            (folder / block.title).parent.mkdir(parents=True, exist_ok=True)
            (folder / block.title).write_text(block.text)
        if block.language != "yaml" or block.title.startswith("wrong") or block.title == "base.yaml":
            continue
        tree = parse_yaml(block.text, f"{page.name}:{block.line}")
        assert not tree.problems, tree.problems
        assert set(tree.value) <= {*SECTIONS, "extends"}, f"{page.name}:{block.line}"
        is_whole = "extends" in tree.value or {"model", "datasets", "plugins"} <= set(tree.value)
        base = base_config()
        if "num_train_epochs" in block.text:
            del base["trainer"]["arguments"]["max_steps"]  # which would go before it
        if "on_spike" in block.text:
            base["trainer"]["arguments"]["max_steps"] = 100  # a run of two would have no step that can leap
        yield block, tree.value if is_whole else whole_run(tree.value, base)


@pages
def test_every_configuration_is_accepted(page, folder, monkeypatch, capsys):
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # pages about kernels are for machines with a GPU
    for block, config in fragments(page, folder):
        for name in re.findall(r"\$\{env:(\w+)\}", block.text):
            monkeypatch.setenv(name, "2")
        file = folder / "checked.yaml"
        file.write_text(yaml.safe_dump(config, sort_keys=False))
        assert main(["check", str(file)]) == 0, f"{page.name}:{block.line}\n{capsys.readouterr().err}"


@pages
def test_messages_are_what_dumbo_says(page, folder, capsys):
    """A block of text titled as a wrong configuration before it is what `dumbo check` says about that."""
    shown = {block.title: block for block in blocks(page) if block.title.startswith("wrong")}
    for block in blocks(page):
        if block.language == "yaml" and block.title in shown:
            (folder / block.title).write_text(block.text)
            capsys.readouterr()
            assert main(["check", block.title]) == 2
            assert capsys.readouterr().err == shown[block.title].text


@pages
def test_python_is_valid_and_formatted_for_a_page(page):
    for block in blocks(page):
        if block.language == "python":
            ast.parse(block.text, f"{page.name}:{block.line}")


@pages
def test_lines_fit_a_terminal(page):
    """Prose wraps; code and tables may be longer."""
    in_block = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        in_block ^= line.startswith("```")
        if not in_block and not line.startswith("|"):
            assert len(line) <= 130, f"{page.name}:{number} has {len(line)} columns"


@pages
def test_every_key_exists(page):
    known = {option.key for option in all_options(composed_model())}
    own = {
        f"{root}.{name}" for block in blocks(page) for root, name in re.findall(r'section = "(\w+)\.(\w+)"', block.text)
    }
    text = re.sub(r"^```(?:text|python).*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for key in re.findall(r"`((?:model|datasets|trainer|evaluation)\.[a-z_][\w.]*)", text):
        key = re.sub(r"\.\d+(?=\.|$)", "", key).rstrip(".")
        assert key in known or any(f"{key}.".startswith(f"{section}.") for section in own), f"{page.name}: {key}"


@pages
def test_every_command_exists(page):
    known = {option.key for option in all_options(composed_model())}
    verbs = {*VERBS, *brought_verbs(find_installed()[0], list(VERBS))[0]}
    for block in blocks(page):
        if block.language != "sh":
            continue
        for line in block.text.splitlines():
            words = shlex.split(line, comments=True)
            where = [i for i, word in enumerate(words) if word.rpartition("/")[2] == "dumbo"]
            if not where or not words[where[0] + 1 :] or words[where[0] - 1] in ("cd", "clone"):
                continue
            verb = words[where[0] + 1]
            assert verb in verbs or verb.endswith(".yaml") or verb.startswith("-"), f"{page.name}: {line}"
            for key in [word.partition("=")[0] for word in words if "=" in word and not word.startswith("-")]:
                if "." in key:
                    assert re.sub(r"\.\d+(?=\.)", "", key) in known, f"{page.name}: {line}"


def plugin_examples() -> list[str]:
    """The files that are followed by what they add to a configuration."""
    pairs = itertools.pairwise(blocks(GUIDE))
    return [block.title for block, after in pairs if (block.language, after.language) == ("python", "yaml")]


DOES = {
    "custom.py": lambda out, run: "step 2 has {'train/loss': " in out,
    "csv_log.py": lambda out, run: (run / "metrics.csv").read_text().startswith("2,"),
    "from_nothing.py": lambda out, run: "random weights for a llama" in out,
    "lower_case.py": lambda out, run: '"Lowercase"' in (run / "model/tokenizer.json").read_text(),
    "plain_attention.py": lambda out, run: "attention eager" in out,
    "freeze.py": lambda out, run: re.search(r"frozen: 1 of \d+ parameters", out),
    "line_reader.py": lambda out, run: re.search(r"questions.txt +2 ", out),
    "quiz.py": lambda out, run: "trained 2 steps" in out,
    "whole_text.py": lambda out, run: re.search(r"train.jsonl +8 +[\d,]+ +9\d%", out),
    "answer_only.py": lambda out, run: re.search(r"train.jsonl +8 +[\d,]+ +[1-9]\d?%", out),
    "shortest_half.py": lambda out, run: "kept the 4 shortest rows of 8" in out,
    "count_passes.py": lambda out, run: re.search(r"^[1-9]\d* forward passes$", out, re.MULTILINE),
    "pad_to_eight.py": lambda out, run: "trained 2 steps" in out,
    "z_loss.py": lambda out, run: losses(run) != plain_losses(run),
    "focal.py": lambda out, run: losses(run)[0] < plain_losses(run)[0],
    "plain_sgd.py": lambda out, run: losses(run)[0] == plain_losses(run)[0] and losses(run) != plain_losses(run),
    "slow_start.py": lambda out, run: losses(run)[0] == plain_losses(run)[0] and losses(run) != plain_losses(run),
    "triangle.py": lambda out, run: "lr 0.000667" in out,
    "tool_tokens.py": lambda out, run: '"</tool>"' in (run / "model" / "tokenizer_config.json").read_text(),
    "less_repeating.py": lambda out, run: "less_repeating" in (run / "model" / "tokenizer_config.json").read_text(),
    "answer_length.py": lambda out, run: re.search(r"step 2/2 .*eval/answer_tokens \d", out),
    "tell_when_good.py": lambda out, run: "the loss is down to 100" in out,
    "plain_loop.py": lambda out, run: (
        len(losses(run)) == 2 and losses(run)[0] == pytest.approx(plain_losses(run)[0], 1e-5)
    ),
    "size_report.py": lambda out, run: "model.safetensors" in (run / "sizes.txt").read_text(),
}
"""What shows that an example did what the guide says."""


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


def plain_losses(run: Path) -> list[float]:
    """Of the same run without the plugin."""
    without = run.parent / "without"
    if not without.exists():
        config = run_of_guide({}, without)
        (run.parent / "without.yaml").write_text(yaml.safe_dump(config))
        assert main([str(run.parent / "without.yaml")]) == 0
    return losses(without)


def run_of_guide(added: dict[str, Any], output_dir: Path) -> dict[str, Any]:
    config = base_config()
    for name in ("logging_steps", "use_cpu"):
        del config["trainer"]["arguments"][name]
    if "./plain_loop.py:PlainLoopPlugin" not in added.get("plugins", ()):
        config["trainer"]["arguments"] |= {"use_cpu": True, "logging_steps": 1}
    config["trainer"]["output_dir"] = str(output_dir)
    return whole_run(added, config)


@pytest.mark.parametrize("title", plugin_examples())
def test_every_plugin_of_the_guide_works(title, folder, capsys):
    found = blocks(GUIDE)
    position = next(i for i, block in enumerate(found) if block.title == title)
    (folder / title).write_text(found[position].text)
    added = parse_yaml(found[position + 1].text, title).value
    (folder / "run.yaml").write_text(yaml.safe_dump(run_of_guide(added, folder / "out"), sort_keys=False))
    code = main(["run.yaml"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert DOES[title](printed.out, folder / "out"), printed.out


def test_the_test_of_the_guide_passes(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))
    space: dict[str, Any] = {}
    for title in ("freeze.py", "test_freeze.py"):
        block = next(block for block in blocks(GUIDE) if block.title == title)
        (folder / title).write_text(block.text)
    exec(compile((folder / "test_freeze.py").read_text(), "test_freeze.py", "exec"), space)
    tests = [value for name, value in space.items() if name.startswith("test_")]
    assert len(tests) == 2
    for test in tests:
        test()
    del sys.modules["freeze"]


def test_the_package_of_the_guide_is_found(folder):
    """Installed as pip would leave it: a module and its `dist-info` with the entry point."""
    import tomllib

    found = blocks(GUIDE)
    module = next(block for block in found if block.title == "dumbo_hello.py")
    project = tomllib.loads(next(block for block in found if block.language == "toml").text)["project"]
    (folder / "site").mkdir()
    (folder / "site" / "dumbo_hello.py").write_text(module.text)
    info = folder / "site" / f"dumbo_hello-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
    entries = project["entry-points"]["dumbo.plugins"]
    (info / "entry_points.txt").write_text("[dumbo.plugins]\n" + "".join(f"{k} = {v}\n" for k, v in entries.items()))
    path = f"{folder / 'site'}:{builders.ROOT / 'src'}"
    done = builders.dumbo("hello", "world", PYTHONPATH=path)
    assert (done.returncode, done.stdout) == (0, "hello world\n"), done.stderr
    listed = builders.dumbo("plugins", PYTHONPATH=path).stdout
    assert re.search(r"^hello  \(dumbo-hello\)  Says hello\.$", listed, re.MULTILINE), listed


def test_every_interface_is_in_the_guide():
    from dumbo.plugin_interfaces import INTERFACES

    text = GUIDE.read_text(encoding="utf-8")
    for interface in INTERFACES:
        assert re.search(rf"^## .*`{interface.hook}`", text, re.MULTILINE), interface.hook


def test_what_the_quickstart_generates_with_runs(folder, capsys):
    """The quickstart's run on a tiny model, and then its Python file, which loads what came out."""
    found = {block.title: block for block in blocks(QUICKSTART) if block.title}
    (folder / "run.yaml").write_text(found["run.yaml"].text)
    (folder / "train.jsonl").write_text(found["train.jsonl"].text)
    overrides = ["model.base_model=my-model", "trainer.arguments.use_cpu=true"]
    assert main(["run.yaml", *overrides]) == 0, capsys.readouterr().err
    exec(compile(found["generate.py"].text, "generate.py", "exec"), {})
