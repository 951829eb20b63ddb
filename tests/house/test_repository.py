"""The files around the code: pins that agree, examples that are right, nothing that one machine alone understands."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from tests import builders
from tests.house.tree import ROOT, repository_files, short

# Written in pieces, so that this file does not hold what it looks for.
FOREIGN = (
    "/".join(("", "work", "")),
    "-".join(("find", "links")),
    "-".join(("index", "url")),
    ".".join(("pypi", "org")),
    ".".join(("pythonhosted", "org")),
    ".".join(("npmjs", "org")),
    "/".join(("", "root", "")),
)
UNREASONED = re.compile(r"\b(TO[D]O|FIX[M]E|XX[X])\b(?!\(\S.*?\): \S)")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def foreign_words(path: Path) -> list[str]:
    """Paths and hosts that mean something on one machine only, and notes to oneself without a reason."""
    if path.name in {"uv.lock", "LICENSE"}:
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        return []
    found = []
    for number, line in enumerate(lines, 1):
        found += [f"{short(path)}:{number}: {word}" for word in FOREIGN if word in line]
        found += [f"{short(path)}:{number}: {match[0]} without a reason" for match in UNREASONED.finditer(line)]
    return found


def pins(lines: list[str]) -> list[str]:
    """The pins among the lines of a constraints file."""
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def test_no_file_speaks_of_one_machine():
    found = [violation for path in repository_files() for violation in foreign_words(path)]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize("text", [f"cd {FOREIGN[0]}x", f"pip --{FOREIGN[2]} x", "# TO" + "DO: later"])
def test_a_foreign_word_is_caught(tmp_path, text):
    planted = tmp_path / "planted.md"
    planted.write_text(f"first line\n{text}\n")
    assert len(foreign_words(planted)) == 1


def test_a_reason_makes_a_note_acceptable(tmp_path):
    file = tmp_path / "noted.py"
    file.write_text("# TO" + "DO(torch 3 brings it): remove this branch\n")
    assert foreign_words(file) == []


def test_pip_and_uv_are_given_the_same_pins():
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert PROJECT["tool"]["uv"]["constraint-dependencies"] == pins(constraints)


def unfit_pins(requirements: list[str], constraints: list[str]) -> list[str]:
    """Requirements that no pin answers, and pins outside of what a requirement allows."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    pinned = {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in constraints)}
    found = []
    for requirement in map(Requirement, requirements):
        version = pinned.get(canonicalize_name(requirement.name))
        if version is None:
            found.append(f"{requirement.name} has no pin")
        elif not requirement.specifier.contains(version):
            found.append(f"{requirement} does not allow {version}")
    return found


def test_every_direct_dependency_has_a_pin_that_fits():
    extras = PROJECT["project"]["optional-dependencies"]
    of_ourselves = f"{PROJECT['project']['name']}["
    tested = [requirement for name in ("all", "test", "check") for requirement in extras[name]]
    tested += [requirement for name in _extras_of_all() for requirement in extras[name]]
    direct = [r for r in PROJECT["project"]["dependencies"] + tested if not r.startswith(of_ourselves)]
    assert unfit_pins(direct, PROJECT["tool"]["uv"]["constraint-dependencies"]) == []


def test_an_unfit_pin_is_caught():
    assert unfit_pins(["torch>=3", "rich", "PyYAML>=6"], ["torch==2.13.0", "pyyaml==6.0.3"]) == [
        "torch>=3 does not allow 2.13.0",
        "rich has no pin",
    ]


def _extras_of_all() -> list[str]:
    return ",".join(re.findall(r"\[(.*?)\]", " ".join(PROJECT["project"]["optional-dependencies"]["all"]))).split(",")


def example_configurations() -> list[Path]:
    """The run files under `examples/`; those of the example package need it installed and are tested with it."""
    folder = ROOT / "examples"
    files = [path for path in sorted(folder.rglob("*.yaml")) if "plugin" not in path.relative_to(folder).parts]
    return [path for path in files if "plugins" in (yaml.safe_load(path.read_text(encoding="utf-8")) or {})]


@pytest.mark.parametrize("path", example_configurations(), ids=short)
def test_an_example_is_valid(path, model_folder, tmp_path):
    # Whoever has tried them has their results: a folder that holds a run would be refused.
    words = [f"trainer.output_dir={tmp_path / 'out'}"]
    base = yaml.safe_load(path.read_text(encoding="utf-8")).get("model", {}).get("base_model", "")
    if base.startswith("runs/"):  # goes on from another's result
        words.append(f"model.base_model={model_folder}")
    if path.name == "distill.yaml":
        words += [f"model.tokenizer.path={model_folder}", f"trainer.kd.teacher.path={model_folder}"]
    result = builders.dumbo("check", path, *words, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
