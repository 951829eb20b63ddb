"""Plugins are found by name, address or entry point, and what cannot be found says what to write."""

import sys
from pathlib import Path

import pytest

from dumbo.errors import ConfigError
from dumbo.plugin_finder import find_installed, find_plugin, missing_packages, plugin_name, shipped_names
from dumbo.plugin_loader import BasePlugin

PLUGIN = """\
from dumbo.plugin_loader import BasePlugin


class MinePlugin(BasePlugin):
    def load_model(self, config): ...
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Installs a distribution that brings plugins: (name, entry points, modules) -> its folder on sys.path."""

    def install(distribution, entry_points, **modules):
        folder = tmp_path / distribution
        info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = "".join(f"{name} = {value}\n" for name, value in entry_points.items())
        (info / "entry_points.txt").write_text(f"[dumbo.plugins]\n{lines}")
        for name, text in modules.items():
            (folder / f"{name}.py").write_text(text)
        monkeypatch.syspath_prepend(folder)
        return folder

    before = set(sys.modules)
    yield install
    for name in set(sys.modules) - before:
        if name.startswith("brought_"):
            del sys.modules[name]


def refusal(name, folder=Path()):
    with pytest.raises(ConfigError) as caught:
        find_plugin(name, folder)
    return str(caught.value)


@pytest.mark.parametrize(
    ("class_name", "name"),
    [
        ("CustomMetricsPlugin", "custom_metrics"),
        ("Freeze", "freeze"),
        ("Plugin", "plugin"),
        ("CSVLogPlugin", "csvlog"),
        ("MyHTTPPlugin", "my_http"),
        ("Fp8Plugin", "fp8"),
        ("lowerPlugin", "lower"),
    ],
)
def test_the_default_name_is_the_class_s_in_snake_case(class_name, name):
    assert plugin_name(type(class_name, (BasePlugin,), {})) == name


def test_a_declared_name_counts():
    assert plugin_name(type("Other", (BasePlugin,), {"name": "mine"})) == "mine"


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_plugins_are_found_by_name(name):
    found = find_plugin(name, Path())
    assert (found.name, found.origin) == (name, "shipped")
    assert missing_packages(found.type) == ()


def test_every_installed_plugin_is_found():
    found, problems = find_installed()
    assert set(shipped_names()) <= {plugin.name for plugin in found}
    assert problems == []


@pytest.mark.parametrize(
    "form", ["./mine.py:MinePlugin", "mine.py:MinePlugin", "parts/../mine.py:MinePlugin", "{}:MinePlugin"]
)
def test_a_class_in_a_file(tmp_path, form):
    (tmp_path / "parts").mkdir()
    (tmp_path / "mine.py").write_text(PLUGIN)
    found = find_plugin(form.format(tmp_path / "mine.py"), tmp_path)
    assert found.name == "mine"
    assert found.type.__name__ == "MinePlugin"
    assert found.origin.endswith("mine.py")


def test_two_files_of_one_name_do_not_meet(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text(PLUGIN + f"    tag = '{folder}'\n")
    tags = [find_plugin(f"./{folder}/mine.py:MinePlugin", tmp_path).type.tag for folder in ("a", "b")]
    assert tags == ["a", "b"]


def test_a_class_of_a_module():
    found = find_plugin("dumbo.plugins.polars.plugin:PolarsPlugin", Path())
    assert found.name == "polars"


def test_a_plugin_of_another_package(package):
    package("brought-log", {"brought_log": "brought_log:MinePlugin"}, brought_log=PLUGIN)
    found = find_plugin("brought_log", Path())
    assert (found.name, found.origin, found.type.__name__) == ("brought_log", "brought-log", "MinePlugin")
    assert "brought_log" in {plugin.name for plugin in find_installed()[0]}


def test_an_entry_point_may_name_a_module_with_one_class(package):
    package("brought-log", {"brought_log": "brought_log"}, brought_log=PLUGIN)
    assert find_plugin("brought_log", Path()).type.__name__ == "MinePlugin"


def test_two_packages_with_one_name_are_refused(package):
    package("brought-a", {"brought_log": "brought_a:MinePlugin"}, brought_a=PLUGIN)
    package("brought-b", {"brought_log": "brought_b:MinePlugin"}, brought_b=PLUGIN)
    assert "two packages bring a plugin called 'brought_log': brought-a and brought-b" in refusal("brought_log")


def test_a_package_may_not_take_a_shipped_name(package):
    package("brought-a", {"polars": "brought_a:MinePlugin"}, brought_a=PLUGIN)
    assert "the package brought-a brings a plugin of the same name as dumbo's own 'polars'" in refusal("polars")


def test_a_broken_package_is_a_problem_of_its_own(package):
    package("brought-a", {"brought_a": "brought_a:MinePlugin"}, brought_a="1 / 0\n")
    found, problems = find_installed()
    assert set(shipped_names()) <= {plugin.name for plugin in found}
    assert len(problems) == 1
    assert "the plugin 'brought_a' cannot be imported: ZeroDivisionError" in str(problems[0])


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("x = 1\n", "must have exactly one plugin class, and has 0"),
        (PLUGIN + PLUGIN.replace("Mine", "Other"), "must have exactly one plugin class, and has 2"),
    ],
)
def test_a_module_without_one_plugin_class_is_refused(package, module, expected):
    package("brought-a", {"brought_a": "brought_a"}, brought_a=module)
    assert expected in refusal("brought_a")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("transformer", "no plugin is called 'transformer'\n    did you mean 'transformers'?\n    installed are: "),
        ("zzz", "no plugin is called 'zzz'\n    installed are: bitsandbytes, cut_cross_entropy, "),
        ("", "no plugin is called ''"),
        ("mine.py", "'mine.py' names a file but no class\n    write './mine.py:ClassName'"),
        (":Mine", "':Mine' names no class"),
        ("mine:", "'mine:' names no class"),
        ("./mien.py:MinePlugin", "mien.py\n    did you mean './mine.py'?"),
        ("./far/mine.py:MinePlugin", "the path is taken from the folder of the configuration file"),
        (
            "./mine.py:MinPlugin",
            "mine.py has no class 'MinPlugin'\n    did you mean 'MinePlugin'?\n    its plugin classes are: MinePl",
        ),
        (
            "./mine.py:helper",
            "./mine.py:helper is not a plugin class\n    derive the class from dumbo.plugin_loader.Base",
        ),
        ("./mine.py:Plain", "./mine.py:Plain is not a plugin class"),
        ("./plain.py:Mine", "plain.py has no class 'Mine'\n    it has no class derived from BasePlugin"),
        (
            "no_such_package.mine:Mine",
            "there is no module 'no_such_package'\n    'no_such_package.mine' must be import",
        ),
        ("json.mine:Mine", "there is no module 'json.mine'"),
        ("./syntax.py:Mine", "the plugin './syntax.py:Mine' cannot be imported: "),
        ("./raising.py:Mine", "cannot be imported: ValueError: too bad ("),
        ("./lacking.py:Mine", "cannot be imported: ModuleNotFoundError: No module named 'no_such_package'"),
        ("./leaving.py:Mine", "cannot be imported: SystemExit: 3 ("),
    ],
)
def test_what_cannot_be_found_says_what_to_write(tmp_path, name, expected):
    (tmp_path / "mine.py").write_text(PLUGIN + "\n\ndef helper(): ...\n\n\nclass Plain: ...\n")
    (tmp_path / "plain.py").write_text("x = 1\n")
    (tmp_path / "syntax.py").write_text("x = 1\nclass Mine(\n")
    (tmp_path / "raising.py").write_text("\nraise ValueError('too\\nbad')\n")
    (tmp_path / "lacking.py").write_text("import no_such_package\n")
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit(3)\n")
    message = refusal(name, tmp_path)
    assert expected in message
    for file, line in (("syntax", 2), ("raising", 2), ("lacking", 1), ("leaving", 2)):
        if f"{file}.py:" in name:
            assert f"{tmp_path / file}.py:{line}" in message, "the line is named"


def test_missing_packages_are_named(package):
    Needy = type("Needy", (BasePlugin,), {"packages": ("json", "no_such_package_at_all")})
    assert missing_packages(Needy) == ("no_such_package_at_all",)


DECLARING = """\
from dataclasses import dataclass
from typing import ClassVar
from dumbo.config.schema import FormatOptions
from dumbo.config.section import Section
from dumbo.plugin_loader import *


@dataclass
class Opt2:
    every: int = 1


class Ok(Section):
    every: int = 1


class Ten(Section):
    every: int = "ten"
    needed: str


class MinePlugin(BasePlugin):
    {}
"""
PATCH = "def patch_model(self, model, config): return model"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            f"section, options_type = 'trainer.x', Opt2\n    {PATCH}",
            "options_type 'Opt2' is not a Section\n    derive it from dumbo.config.section.Section",
        ),
        (
            f"section, options_type = 'trainer.x', Ok()\n    {PATCH}",
            "is an instance, not a class\n    write Ok, not Ok()",
        ),
        (f"options_type = Ok\n    {PATCH}", "it has options_type 'Ok' but no section: nobody can write these options"),
        (f"section = 'trainer.x'\n    {PATCH}", "it has the section 'trainer.x' but no options_type"),
        (
            f"section, options_type = 'trainer.x', Ten\n    {PATCH}",
            "options_type 'Ten': the default of 'every' is wrong: it should be a valid integer, and is 'ten'",
        ),
        ("readers = {'r': Ten}\n    def read(self, options): ...", "readers['r']: the default of 'every' is wrong"),
        ("readers = {'r': Opt2}\n    def read(self, options): ...", "readers['r'] 'Opt2' is not a Section"),
        ("readers = ['r']\n    def read(self, options): ...", "'readers' must map names to classes of options"),
        ("def read(self, options): ...", "it has 'read', but 'readers' is empty"),
        (
            "data_formats = {'r': Ok}\n    def build_data_format(self, options): ...",
            "data_formats['r'] 'Ok' is not a FormatOptions",
        ),
        ("commands = {}\n    def run_command(self, verb, arguments): ...", "'commands' must map each verb to its line"),
        (f"after = 'lora'\n    {PATCH}", "'after' must be a set of names of plugins"),
        (f"phase = 2\n    {PATCH}", "'phase' must be a Phase, not 2"),
        (f"rows_are_separate = 'yes'\n    {PATCH}", "'rows_are_separate' must be True or False"),
        (
            "def patch_model(self, model): return model",
            "patch_model takes (self, model), must take (self, model, config) ({}:23)",
        ),
        (
            "@staticmethod\n    def patch_model(model): return model",
            "patch_model takes (model), must take (self, model, c",
        ),
        (f"def __init__(self, path): ...\n    {PATCH}", "__init__ takes (self, path), must take (self) ({}:23)"),
        ("def check(self): ...", "check takes (self), must take (self, config) ({}:23)"),
        (
            "def load_tokenizer(self, config): ...",
            "load_tokenizer takes (self, config), must take (self, config, model=None) ({}:23)",
        ),
    ],
)
def test_what_is_wrong_with_a_class_is_said_when_it_is_found(tmp_path, body, expected):
    (tmp_path / "mine.py").write_text(DECLARING.format(body))
    said = refusal("./mine.py:MinePlugin", tmp_path)
    assert said.startswith("plugin 'mine': ")
    assert expected.format(tmp_path / "mine.py") in said


@pytest.mark.parametrize(
    "body",
    [
        "def patch_model(self, *anything): ...",
        "def patch_model(self, model, config, more=1, **others): ...",
        "@staticmethod\n    def patch_model(model, config): ...",
        "def load_tokenizer(self, config, **keywords): ...",
        "readers, options_type = {'r': Ok}, Ok\n    def read(self, options): ...",
        "section, options_type = 'trainer.x', Ok\n    def check(self, config): ...",
    ],
)
def test_what_can_be_called_is_fine(tmp_path, body):
    (tmp_path / "mine.py").write_text(DECLARING.format(body))
    assert find_plugin("./mine.py:MinePlugin", tmp_path).name == "mine"


@pytest.mark.parametrize("name", ["../evil", "evil", "transformers/../../evil", "..evil", "/{here}/evil", "evil.py"])
def test_a_name_never_leads_to_a_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, tmp_path / "inside"):
        folder.mkdir(exist_ok=True)
        (folder / "evil.py").write_text(f"raise SystemExit('it ran')\n{PLUGIN}")
        (folder / "evil").mkdir()
        (folder / "evil" / "plugin.py").write_text(f"raise SystemExit('it ran')\n{PLUGIN}")
    said = refusal(name.format(here=tmp_path), tmp_path / "inside")
    assert "it ran" not in said and ("no plugin is called" in said or "names a file but no class" in said)


def test_an_address_may_lead_upwards(tmp_path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "mine.py").write_text(PLUGIN)
    assert find_plugin("../mine.py:MinePlugin", tmp_path / "inside").name == "mine"
    (tmp_path / "mine.txt").write_text(PLUGIN)
    assert "is not a Python file" in refusal("../mine.txt:MinePlugin", tmp_path / "inside")
