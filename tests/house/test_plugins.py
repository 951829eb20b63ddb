"""A shipped plugin has one name: its folder, its key, its page, and its extra where it needs packages of its own."""

import importlib
import re
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from dumbo.plugin_finder import find_plugin
from dumbo.plugin_loader import BasePlugin
from tests.house.tree import ROOT, plugin_folders

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def distribution(requirement: str) -> str:
    """The normalised name of the distribution in `Name[extra]>=1`."""
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def own_packages(plugin: type[BasePlugin]) -> set[str]:
    """The distributions that the plugin needs beyond the core's."""
    installed = packages_distributions()
    needed = {installed.get(package.partition(".")[0], [package])[0] for package in plugin.packages}
    return {distribution(name) for name in needed} - {distribution(name) for name in PROJECT["dependencies"]}


def name_violations(name: str, plugin: type[BasePlugin], folder: Path, extras: dict[str, list[str]]) -> list[str]:
    """What is wrong with the names, the page and the extra of the plugin that lives in `folder`."""
    found = [] if name == folder.name else [f"the folder {folder.name} holds the plugin '{name}'"]
    page = folder / "README.md"
    if not page.is_file():
        found.append(f"{folder.name} has no README.md")
    elif not page.read_text(encoding="utf-8").startswith(f"# {folder.name}\n"):
        found.append(f"the README.md of {folder.name} does not start with '# {folder.name}'")
    if plugin.section and plugin.section.rpartition(".")[2] != name:
        found.append(f"the section of {name} is called {plugin.section}")
    missing = own_packages(plugin) - {distribution(requirement) for requirement in extras.get(name, [])}
    if missing:
        found.append(f"the extra '{name}' in pyproject.toml lacks {', '.join(sorted(missing))}")
    return found


@pytest.mark.parametrize("folder", plugin_folders(), ids=lambda folder: folder.name)
def test_a_plugin_has_one_name(folder):
    plugin = find_plugin(folder.name, ROOT)
    assert name_violations(plugin.name, plugin.type, folder, PROJECT["optional-dependencies"]) == []
    assert importlib.import_module(f"dumbo.plugins.{folder.name}").__doc__ or plugin.type.__doc__


@pytest.mark.parametrize("folder", plugin_folders(), ids=lambda folder: folder.name)
def test_a_plugin_with_an_extra_is_part_of_all(folder):
    extras = PROJECT["optional-dependencies"]
    if folder.name in extras:
        together = ",".join(re.findall(r"\[(.*?)\]", " ".join(extras["all"]))).split(",")
        assert folder.name in together, "add it to the extra 'all'"


def test_wrong_names_are_caught(tmp_path):
    class Planted(BasePlugin):
        section = "trainer.other"
        packages = ("torch", "no_such_package_anywhere")

    folder = tmp_path / "folder"
    folder.mkdir()
    assert name_violations("planted", Planted, folder, {"planted": ["torch>=2"]}) == [
        "the folder folder holds the plugin 'planted'",
        "folder has no README.md",
        "the section of planted is called trainer.other",
        "the extra 'planted' in pyproject.toml lacks no-such-package-anywhere",
    ]
    (folder / "README.md").write_text("# Something else\n")
    assert "the README.md of folder does not start with '# folder'" in name_violations("folder", BasePlugin, folder, {})
