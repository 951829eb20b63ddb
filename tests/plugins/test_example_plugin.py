"""The example of a plugin in a package of its own is built, installed, found, checked and run as its README says."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import builders

EXAMPLE = builders.ROOT / "examples" / "plugin"
PLUGINS = ["transformers", "transformers_trainer", "polars", "jinja_formatter", "csv_log"]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder with the package in it as pip installs it, entry points included; no network is needed."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command = [*pip, "--no-build-isolation", "--no-index", "--target", str(folder), str(EXAMPLE)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder


def dumbo(installed, *words, **options):
    return builders.dumbo(*words, PYTHONPATH=str(installed), **options)


def test_its_own_tests_pass(installed):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE)]
    environment = builders.clean_environment(PYTHONPATH=str(installed))
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_it_is_listed_once_it_is_installed(installed):
    assert "csv_log" not in builders.dumbo("plugins").stdout
    listing = dumbo(installed, "plugins")
    assert listing.returncode == 0, listing.stderr
    assert "csv_log" in listing.stdout
    assert "dumbo-example-plugin" in listing.stdout


def test_its_example_run_is_valid(installed):
    result = dumbo(installed, "check", "run.yaml", cwd=EXAMPLE)
    assert result.returncode == 0, result.stderr


def test_without_the_package_the_run_is_refused_in_one_line_per_mistake():
    result = builders.dumbo("check", "run.yaml", cwd=EXAMPLE)
    assert result.returncode == 2
    assert "no plugin is called 'csv_log'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("options", "key"),
    [({"every": 0}, "every"), ({"evry": 2}, "evry"), ({"file": "../losses.csv"}, "file"), ({"file": "losses"}, "file")],
)
def test_its_options_are_checked_like_the_core_s(installed, tmp_path, model_folder, rows_file, options, key):
    changes = {"plugins": PLUGINS, "trainer.csv_log": options}
    file = builders.write_config(tmp_path, model_folder, rows_file, changes)
    result = dumbo(installed, "check", file)
    assert result.returncode == 2
    assert f"trainer.csv_log.{key}" in result.stderr
    assert f"{file}:" in result.stderr, "the line is named"


@pytest.mark.full
def test_a_whole_run_writes_the_losses_that_the_metrics_have(installed, tmp_path, model_folder, rows_file):
    changes = {
        "plugins": PLUGINS,
        "trainer.csv_log": {"file": "curve.csv", "every": 2},
        "trainer.arguments.max_steps": 5,
    }
    file = builders.write_config(tmp_path, model_folder, rows_file, changes)
    result = dumbo(installed, "train", file)
    assert result.returncode == 0, result.stderr
    with (tmp_path / "out" / "curve.csv").open(newline="") as stream:
        written = [(int(row["step"]), row["metric"], float(row["value"])) for row in csv.DictReader(stream)]
    logged = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in logged if "train/loss" in row] == [1, 2, 3, 4, 5]
    assert written == [
        (row["step"], name, value)
        for row in logged
        if row["step"] % 2 == 0
        for name, value in row.items()
        if name.endswith("/loss")
    ]
    assert [step for step, _, _ in written] == [2, 4]
