"""Secrets that a plugin repeats: in what it raises, whatever characters are in them, and in what it logs and warns of;
and words that are none."""

import json
import logging
import sys
import threading
import warnings

import pytest

from dumbo.cli.main import main
from tests import builders
from tests.run.whole_runs import SHIPPED

REPEATING = """
import os

from transformers import TrainerCallback

from dumbo.plugin_loader import CallbackPlugin


class Repeats(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        secret = os.environ["DEPLOY_SECRET"]
        if state.global_step == 2:
            raise {raised}


class RepeatingPlugin(CallbackPlugin):
    def get_callbacks(self, config):
        return [Repeats()]
"""


@pytest.fixture
def write(tmp_path, model_folder, rows_file):
    """Writes a configuration with a plugin of this code; returns its file."""

    def write_file(code, **changes):
        (tmp_path / "own.py").write_text(code)
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        plugins = [*SHIPPED, "./own.py:RepeatingPlugin"]
        return builders.write_config(tmp_path, model_folder, rows_file, {"plugins": plugins} | dotted)

    return write_file


def left_in(folder):
    """All that a run has written, but for its weights."""
    files = [file for file in folder.rglob("*") if file.suffix in (".html", ".json", ".jsonl", ".yaml")]
    return {file.name: file.read_text(encoding="utf-8") for file in files}


@pytest.mark.parametrize(
    ("raised", "said", "debug"),
    [
        ('RuntimeError("cannot log in with " + secret)', "cannot log in with <redacted>", []),
        ('RuntimeError(f"cannot log in with {[secret]!r}")', "cannot log in with ['<redacted>']", ["--debug"]),
        ('MemoryError("x" * 280 + " " + secret)', "x <redacted>", []),
    ],
    ids=["text", "repr", "cut"],
)
def test_a_secret_of_several_lines_and_quotes_is_left_out(write, tmp_path, monkeypatch, capsys, raised, said, debug):
    monkeypatch.setenv("DEPLOY_SECRET", 'canaryFFFF\nGGGG7777zz\\HHHH"8888zz')
    file = write(REPEATING.replace("{raised}", raised))
    assert main(["train", str(file), *debug]) == 2
    printed = capsys.readouterr()
    left = left_in(tmp_path / "out")
    assert said in printed.err and said in json.loads(left["summary.json"])["error"] and "report.html" in left
    for name, text in {"output": printed.out, "errors": printed.err, **left}.items():
        for piece in ("canary", "GGGG7", "HHHH", "8888zz"):
            assert piece not in text, name


KEYED = """
from dumbo.config.section import Section
from dumbo.plugin_loader import CallbackPlugin


class Options(Section):
    api_key: str | None = None
    \"""A key.\"""
    password: str | None = None
    \"""A key.\"""


class RepeatingPlugin(CallbackPlugin):
    section = "trainer.repeating"
    options_type = Options

    def get_callbacks(self, config):
        return []
"""


@pytest.mark.parametrize("verb", ["train", pytest.param("doctor", marks=pytest.mark.full)])
def test_what_is_said_of_a_key_is_not_taken_for_its_value(write, capsys, verb):
    file = write(KEYED, trainer__repeating={"password": 3, "api_key": ["canary", "eight or more"]}, model__api_key="x")
    assert main([verb, str(file)]) == 2
    printed = capsys.readouterr()
    said = printed.err if verb == "train" else printed.out
    assert "model.api_key: unknown option" in said
    assert "trainer.repeating.password: expected a text, got what is not shown here" in said
    assert "trainer.repeating.api_key: expected a text, got what is not shown here" in said
    assert "canary" not in said and "eight or more" not in said


TALKING = """
import logging
import sys
import threading
import warnings

from dumbo.config.section import Section
from dumbo.plugin_loader import CallbackPlugin


class Options(Section):
    api_key: str = ""
    \"""A key.\"""


class RepeatingPlugin(CallbackPlugin):
    section = "trainer.repeating"
    options_type = Options

    def check(self, config):
        warnings.warn(f"checked with {self.options.api_key}")

    def get_callbacks(self, config):
        key, log = self.options.api_key, logging.getLogger("mine")
        log.addHandler(logging.StreamHandler(sys.stderr))
        log.warning("plain %s", key)
        log.warning("harmless %d", 5)
        log.warning("without a place for it", key)
        try:
            raise ValueError(f"refused {key}")
        except ValueError:
            log.exception("an error", stack_info=True)
        logging.getLogger("transformers.mine").error("to transformers: %s", {"key": key})
        warnings.warn(f"warned with {key}")
        thread = threading.Thread(target=lambda: (log.warning("in a thread %s", key), int(f"not a number {key}")))
        thread.start()
        thread.join()
        return []
"""


@pytest.fixture
def shown_warnings(monkeypatch):
    """Warnings go to the error stream, as they do without pytest."""

    def show(message, category, filename, lineno, file=None, line=None):
        sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))

    monkeypatch.setattr(warnings, "showwarning", show)
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)


def test_what_a_plugin_logs_and_warns_of_is_without_secrets(write, shown_warnings, capsys, caplog):
    before = logging.getLogRecordFactory(), warnings.showwarning, threading.excepthook
    file = write(TALKING, trainer__repeating={"api_key": "canaryBBBB2222zz"})
    assert main(["train", str(file)]) == 0
    assert (logging.getLogRecordFactory(), warnings.showwarning, threading.excepthook) == before
    logging.getLogger("mine").handlers.clear()
    said = capsys.readouterr().err
    assert "canary" not in said + caplog.text
    for line in (
        "plain <redacted>\n",
        "harmless 5\n",
        "without a place for it",
        "ValueError: refused <redacted>\n",
        "Stack (most recent call last)",
        "in a thread <redacted>\n",
        "UserWarning: checked with <redacted>\n",
        "UserWarning: warned with <redacted>\n",
        "ValueError: invalid literal for int() with base 10: 'not a number <redacted>'",
    ):
        assert line in said, line
    assert "to transformers: {'key': '<redacted>'}" in caplog.text
    assert "harmless %d" in [record.msg for record in caplog.records], "what has none is left as it is"
