"""Damaged checkpoints: whatever happened to a file, it is seen, told and skipped, and an older one goes on."""

import random
import shutil
from dataclasses import replace

import pytest

from dumbo.checkpoint.folder import whole_checkpoints
from dumbo.checkpoint.manifest import Manifest
from dumbo.cli.main import main
from dumbo.errors import RunError
from tests import builders
from tests.faults.stopping import assert_same_run, stop_by, write_stoppable

SAVES = {"trainer.arguments.save_strategy": "steps", "trainer.arguments.save_steps": 3}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, model_folder):
    """The configuration of a run that was stopped after step 8, with checkpoints at 3, 6 and 8, and a whole run."""
    folder = tmp_path_factory.mktemp("runs")
    rows = builders.write_rows(folder / "rows.jsonl", builders.alpaca_rows(26))
    whole = write_stoppable(folder / "whole", model_folder, rows, SAVES)
    assert main(["train", str(whole)]) == 0
    stopped = write_stoppable(folder / "stopped", model_folder, rows, SAVES)
    with stop_by("SIGTERM", 8):
        assert main(["train", str(stopped)]) == 75
    return stopped, whole.parent / "out"


def cut(file, draw):
    file.write_bytes(file.read_bytes()[: draw.randrange(max(file.stat().st_size, 1))])


def flip(file, draw):
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def remove(file, draw):
    file.unlink()


def empty(file, draw):
    file.write_bytes(b"")


def test_fifty_damages_are_seen(tmp_path, runs):
    """Every file, in every way, one at a time."""
    stopped, _ = runs
    good = stopped.parent / "out" / "checkpoints" / "step-000008"
    Manifest.read(good).check(good)
    files = sorted(path.relative_to(good) for path in good.rglob("*") if path.is_file() and path.stat().st_size)
    draw, seen = random.Random(0), 0
    for name in files:
        for damage in (cut, flip, remove, empty, flip):
            copy = tmp_path / f"run-{seen}" / "checkpoints" / "step-000008"
            shutil.copytree(good, copy)
            damage(copy / name, draw)
            if (copy / name).exists() and (copy / name).read_bytes() == (good / name).read_bytes():
                continue  # cut behind its last byte
            said = []
            assert list(whole_checkpoints(copy.parent.parent, said.append)) == []
            assert len(said) == 1 and "step-000008 is skipped" in said[0]
            seen += 1
            shutil.rmtree(copy.parent.parent)
    assert seen >= 50


def test_an_older_one_goes_on(tmp_path, runs, capfd):
    stopped, whole = runs
    run = tmp_path / "out"
    shutil.copytree(stopped.parent / "out", run)
    flip(run / "checkpoints" / "step-000008" / "training" / "state.safetensors", random.Random(1))
    (run / "checkpoints" / "step-000006" / "model.safetensors").unlink()
    words = ["train", str(stopped), "--resume", "--from", str(run)]
    named = [*words[:-1], str(run / "checkpoints" / "step-000006")]
    assert main(named) == 2
    said = capfd.readouterr().err
    assert "step-000006 cannot be used: model.safetensors is missing" in said
    assert "step-000003, step-000008" in said
    assert main(words) == 0
    said = capfd.readouterr().out
    assert "step-000008 is skipped: training/state.safetensors has changed since it was written" in said
    assert "step-000006 is skipped: model.safetensors is missing" in said
    assert "after step 3 (step-000003)" in said
    assert_same_run(run, whole)


def test_nothing_whole_is_left(tmp_path, runs, capfd):
    """What was trained is not begun anew without a word, and its metrics stay."""
    stopped, _ = runs
    run = tmp_path / "out"
    shutil.copytree(stopped.parent / "out", run)
    for checkpoint in (run / "checkpoints").iterdir():
        (checkpoint / "manifest.json").unlink()
    before = (run / "metrics.jsonl").read_bytes()
    assert main(["train", str(stopped), "--resume", "--from", str(run)]) == 2
    said = capfd.readouterr()
    assert said.out.count("is skipped: it has no manifest, so it was not written to its end") == 3
    assert f"no checkpoint in {run / 'checkpoints'} can be used" in said.err
    assert (run / "metrics.jsonl").read_bytes() == before


def test_no_file_holds_a_pickle(runs):
    stopped, _ = runs
    checkpoint = stopped.parent / "out" / "checkpoints" / "step-000008"
    kinds = {path.suffix for path in checkpoint.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".safetensors", ".jinja", ".txt"}


def test_a_manifest_of_another_format(tmp_path, runs):
    stopped, _ = runs
    copy = tmp_path / "step-000008"
    shutil.copytree(stopped.parent / "out" / "checkpoints" / "step-000008", copy)
    replace(Manifest.read(copy), format=2).write(copy)
    with pytest.raises(RunError, match="has format 2, and this version of dumbo reads format 1"):
        Manifest.read(copy)
    with pytest.raises(RunError, match="manifest.json cannot be read: Is a directory"):
        (copy / "manifest.json").unlink()
        (copy / "manifest.json").mkdir()
        Manifest.read(copy)
