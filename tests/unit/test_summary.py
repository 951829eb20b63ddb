"""`summary.json` is whole at every moment, and holds no secret."""

import json
from pathlib import Path

import numpy as np
import pytest

from dumbo.errors import PluginError
from dumbo.summary import Summary


def read(folder):
    return json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def test_facts_are_kept_merged_and_dated(tmp_path):
    summary = Summary(tmp_path, Path("run.yaml"), ["polars"], enabled=True)
    summary.note("chosen", {"device": "cpu"})
    summary.note_all({"chosen": {"attention": "sdpa"}, "steps": 3})
    facts = read(tmp_path)
    assert facts["chosen"] == {"device": "cpu", "attention": "sdpa"}
    assert (facts["steps"], facts["outcome"], facts["plugins"], facts["name"]) == (
        3,
        "running",
        ["polars"],
        tmp_path.name,
    )
    assert facts["versions"].keys() >= {"dumbo", "python", "torch", "transformers"}
    assert facts["started"].endswith("Z") and facts["seconds"] >= 0
    summary.note("outcome", "finished")
    assert read(tmp_path)["outcome"] == "finished"
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_secrets_are_left_out(tmp_path):
    Summary(tmp_path, Path("run.yaml"), [], enabled=True).note(
        "tracker", {"api_key": "abc", "url": "http://me:pw@host"}
    )
    text = (tmp_path / "summary.json").read_text(encoding="utf-8")
    assert "abc" not in text and "pw@" not in text


def test_other_ranks_and_folders_that_are_gone_are_left_alone(tmp_path):
    Summary(tmp_path, Path("run.yaml"), [], enabled=False).note("steps", 1)
    Summary(tmp_path / "gone", Path("run.yaml"), [], enabled=True).note("steps", 1)
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_other_libraries_become_plain_and_what_cannot_be_written_is_refused(tmp_path):
    summary = Summary(tmp_path, Path("run.yaml"), [], enabled=True)
    summary.note("value", {"loss": np.float32(0.5), "steps": [np.int64(3)]})
    assert read(tmp_path)["value"] == {"loss": 0.5, "steps": [3]}
    with pytest.raises(PluginError, match="the fact 'thing' holds object; give text, numbers, lists or mappings"):
        summary.note("thing", object())
    summary.note("outcome", "finished")
    assert read(tmp_path)["outcome"] == "finished" and "thing" not in read(tmp_path)


def test_a_disk_that_refuses_is_told_of_once(tmp_path, capsys):
    (tmp_path / "summary.json.partial").mkdir()
    summary = Summary(tmp_path, Path("run.yaml"), [], enabled=True)
    summary.note("steps", 1)
    summary.note("steps", 2)
    assert capsys.readouterr().err.count("summary.json cannot be written") == 1
