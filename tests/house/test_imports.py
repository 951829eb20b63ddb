"""The layers hold, and what has to answer at once loads nothing heavy."""

import pytest

from tests import builders
from tests.house import imports
from tests.house.tree import PACKAGE, plugin_folders, short, source_files

HEAVY = ("torch", "transformers", "accelerate", "datasets", "peft", "trl", "polars", "pandas", "pyarrow", "jinja2")
SLOW_TO_START = (*HEAVY, "numpy", "pydantic", "yaml", "rich")


@pytest.mark.parametrize("path", source_files(), ids=short)
def test_a_file_imports_what_its_room_may(path):
    violations = imports.others_object_models(path) + imports.relative_imports(path)
    if PACKAGE / "losses" in path.parents:
        violations += imports.pure_losses(path)
    assert not violations, "\n" + "\n".join(violations)


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (imports.others_object_models, "def f():\n    from transformers import Trainer\n"),
        (imports.others_object_models, "import peft.tuners\n"),
        (imports.pure_losses, "from dumbo.config.schema import RunConfig\n"),
        (imports.pure_losses, "import logging\n"),
        (imports.relative_imports, "from .schema import RunConfig\n"),
    ],
)
def test_a_rule_catches_a_planted_import(tmp_path, rule, text):
    planted = tmp_path / "planted.py"
    planted.write_text(text)
    assert len(rule(planted)) == 1


def test_imports_for_the_type_checker_alone_are_free(tmp_path):
    file = tmp_path / "typed.py"
    file.write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from transformers import Trainer\n")
    assert imports.others_object_models(file) == []


def test_a_loaded_package_is_seen():
    assert imports.loaded_by("import yaml", "yaml", "torch") == ["yaml"]


def test_the_command_line_starts_with_the_standard_library_alone():
    assert imports.loaded_by("import dumbo.cli.main", *SLOW_TO_START) == []


LIGHT = ["dumbo.config.schema", "dumbo.config.compose", "dumbo.plugin_loader", "dumbo.metrics", "dumbo.job"]
LIGHT += [f"dumbo.plugins.{folder.name}.plugin" for folder in plugin_folders()]


def test_what_a_check_needs_is_light():
    assert imports.first_to_load(LIGHT, *HEAVY) == {}


def test_the_module_that_loads_something_heavy_is_named():
    assert imports.first_to_load(["json", "yaml", "yaml.nodes"], "yaml") == {"yaml": "yaml"}


# `jinja2` parses the templates of a configuration; it is small.
HEAVY_FOR_A_CHECK = tuple(name for name in HEAVY if name != "jinja2")


def imported_by_command(*words, **environment):
    """Exit code and imported modules of `dumbo WORDS...`, as the interpreter itself reports them."""
    result = builders.dumbo(*words, PYTHONPROFILEIMPORTTIME="1", **environment)
    lines = [line for line in result.stderr.splitlines() if line.startswith("import time:")]
    assert lines, result.stderr
    return result.returncode, {line.rpartition("|")[2].strip() for line in lines}


def test_the_help_answers_without_anything_slow():
    code, modules = imported_by_command("--help")
    assert code == 0
    assert not modules & set(SLOW_TO_START)


def test_a_good_configuration_is_checked_without_anything_heavy(config_file):
    code, modules = imported_by_command("check", config_file)
    assert code == 0
    assert not modules & set(HEAVY_FOR_A_CHECK)


@pytest.mark.parametrize("verb", ["check", "train"])
def test_a_mistake_is_found_before_anything_heavy_is_imported(tmp_path, model_folder, rows_file, verb):
    changes = {"trainer.arguments.learning_rte": 1e-4}
    file = builders.write_config(tmp_path, model_folder, rows_file, changes)
    code, modules = imported_by_command(verb, file)
    assert code == 2
    assert not modules & set(HEAVY_FOR_A_CHECK)


def test_the_environment_of_a_check_needs_no_home(tmp_path, config_file):
    """Containers often run with a home that cannot be written, and nothing may be left in it by a check."""
    home = tmp_path / "home"
    home.mkdir()
    result = builders.dumbo("check", config_file, HOME=str(home))
    assert result.returncode == 0, result.stderr
    assert [path.name for path in home.iterdir()] == []
