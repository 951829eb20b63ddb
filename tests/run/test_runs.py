"""`dumbo runs` on what real runs leave: while they train, at their end, after a failure, after a kill."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dumbo.cli.main import main
from tests import builders
from tests.house.imports import loaded_by
from tests.run.whole_runs import LEFT, SHIPPED, run_here
from tests.unit.output.fake_runs import write_fake_run

ENDS = '''
import contextlib, os, signal, time
from dumbo.cli.main import main
from dumbo.plugin_loader import BasePlugin

class EndsPlugin(BasePlugin):
    """Looks at its own run in the middle of the third step, and ends it there as its seed says."""
    def get_callbacks(self, config):
        from transformers import TrainerCallback
        class End(TrainerCallback):
            def on_step_begin(self, args, state, control, **kwargs):
                if state.global_step < 2:
                    return
                if config.trainer.seed == 1:
                    with open(config.trainer.output_dir + ".seen", "a") as file, contextlib.redirect_stdout(file):
                        main(["runs", config.trainer.output_dir, "--json"])
                elif config.trainer.seed == 2:
                    raise ValueError("no more\\nthan this: https://me:planted-word@host/x")
                elif config.trainer.seed == 3:
                    os.kill(os.getpid(), signal.SIGINT)
                elif config.trainer.seed == 4 and state.global_step == 3:
                    print("here", flush=True)
                    time.sleep(60)
                elif config.trainer.seed == 5:
                    state.max_steps = "many"
        return [End()]
'''


def write(folder, model_folder, rows_file, seed, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ends.py").write_text(ENDS)
    own = {
        "plugins": [*SHIPPED, "./ends.py:EndsPlugin"],
        "trainer.seed": seed,
        "trainer.arguments.max_steps": 5,
        "trainer.arguments.save_strategy": "steps",
        "trainer.arguments.save_steps": 1,
        "trainer.checkpoints.background": False,  # what is seen in the next step is whole
    }
    return builders.write_config(folder, model_folder, rows_file, own | changes)


def listed(capsys, *words):
    capsys.readouterr()
    assert main(["runs", *map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model_folder, rows_file):
    folder = tmp_path_factory.mktemp("finished")
    changes = {"trainer.data.val_set_size": 2, "trainer.arguments.eval_strategy": "epoch"}
    return run_here(builders.write_config(folder, model_folder, rows_file, changes))


def test_a_finished_run_says_how_far_it_came_and_holds_nothing(finished, capsys):
    assert sorted(path.name for path in finished.iterdir()) == LEFT
    [run] = listed(capsys, finished)
    assert (run["run"], run["state"], run["steps"], run["total_steps"]) == (str(finished), "finished", 2, 2)
    assert run["loss"] > 0 and run["eval_loss"] > 0 and run["bytes"] > 1e5
    assert run["started"] <= run["ended"]
    assert (run["error"], run["owner"], run["checkpoints"]) == (None, None, [])


def test_a_run_that_trains_is_running(tmp_path, model_folder, rows_file, capsys):
    run_here(write(tmp_path, model_folder, rows_file, seed=1))
    seen = [json.loads(f"[{text}") for text in f"\n{(tmp_path / 'out.seen').read_text()}".split("\n[")[1:]]
    assert len(seen) == 3
    for done, [run] in enumerate(seen, start=2):
        assert (run["state"], run["steps"], run["total_steps"]) == ("running", done, 5)
        assert run["checkpoints"] == list(range(1, done + 1))
        assert (run["owner"]["pid"], run["owner"]["config"]) == (os.getpid(), str(tmp_path / "run.yaml"))
    assert listed(capsys, tmp_path)[0]["state"] == "finished"


def test_a_run_that_failed_says_with_what(tmp_path, model_folder, rows_file, capsys):
    file = write(tmp_path, model_folder, rows_file, seed=2)
    assert main(["train", str(file)]) == 2
    [run] = listed(capsys, tmp_path / "out")
    assert (run["state"], run["steps"], run["total_steps"], run["checkpoints"]) == ("failed", 2, 5, [1, 2])
    assert run["error"].startswith("plugin 'ends' failed during training: ValueError: no more than this")
    assert "planted-word" not in run["error"]
    assert main(["runs", str(tmp_path)]) == 0
    header, line, error = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "state", "steps", "loss", "checkpoints", "size", "started", "(UTC)", "duration"]
    assert line.split()[:3] == [str(tmp_path / "out"), "failed", "2/5"]
    assert "2, last 2" in line
    assert error.startswith(f"{tmp_path / 'out'}: plugin 'ends' failed during training: ValueError: no more than this")


def test_an_error_that_nobody_foresaw_is_kept_too(tmp_path, model_folder, rows_file, capsys):
    """A plugin has spoilt what the trainer goes by, which fails later and far from it: the traceback is shown, and the
    run says what it was."""
    assert main(["train", str(write(tmp_path, model_folder, rows_file, seed=5))]) == 1
    assert "Traceback" in capsys.readouterr().err
    [run] = listed(capsys, tmp_path / "out")
    assert (run["state"], run["checkpoints"]) == ("failed", [1, 2])
    assert run["error"].startswith("TypeError: '>=' not supported between instances of 'int' and 'str'")
    assert run["owner"] is None


@pytest.mark.full
def test_a_stopped_run_and_a_killed_one(tmp_path, model_folder, rows_file, capsys):
    assert main(["train", str(write(tmp_path / "a", model_folder, rows_file, seed=3))]) == 130
    file = write(tmp_path / "b", model_folder, rows_file, seed=4)
    process = subprocess.Popen(
        [sys.executable, "-m", "dumbo", str(file)],
        env=builders.clean_environment(PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert "here\n" in iter(process.stdout.readline, "")
    [run] = listed(capsys, tmp_path / "b")
    assert (run["state"], run["owner"]["pid"], run["steps"]) == ("running", process.pid, 3)
    for verb in ("train", "check"):
        assert main([verb, str(file)]) == 2
        assert f"out is in use by process {process.pid} of " in capsys.readouterr().err
    process.send_signal(signal.SIGKILL)
    process.communicate()
    killed, stopped = listed(capsys, tmp_path)
    assert (killed["state"], killed["steps"], killed["total_steps"]) == ("killed", 3, 5)
    assert (killed["owner"], killed["ended"], killed["error"]) == (None, None, None)
    assert (stopped["state"], stopped["steps"]) == ("stopped", 3)
    assert main(["runs", str(tmp_path / "a")]) == 0
    assert "  stopped at step 3  " in capsys.readouterr().out
    assert main([str(file)]) == 2
    assert "already holds a run" in capsys.readouterr().err
    (tmp_path / "b" / "out" / "metrics.jsonl").write_text("")
    shutil.rmtree(tmp_path / "b" / "out" / "checkpoints")
    assert main([str(file), "trainer.seed=9"]) == 0, "it was killed with nothing to keep: its folder is free"
    assert sorted(path.name for path in (tmp_path / "b" / "out").iterdir()) == sorted([*LEFT, "checkpoints"])


def test_folders_without_runs_and_no_folders(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 0
    assert capsys.readouterr().out == "no runs in runs\n"
    assert listed(capsys) == []
    Path("runs", "mine").mkdir(parents=True)
    Path("file").write_text("")
    assert main(["runs", "runs", "."]) == 0
    assert capsys.readouterr().out == "no runs in runs, .\n"
    assert main(["runs", "run"]) == 2
    assert capsys.readouterr().err == "there is no folder 'run'\n    did you mean 'runs'?\n"
    assert main(["runs", "file"]) == 2
    assert capsys.readouterr().err.startswith("file is a file; a run is a folder\n")


def test_many_runs_newest_first_and_broken_ones_among_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for day, name in enumerate(("one", "two", "three"), start=1):
        write_fake_run(
            tmp_path / "runs" / name, rows=[{"step": 5, "train/loss": 1 / 3}], started=f"2026-11-0{day}T10:00Z"
        )
    (tmp_path / "runs" / "two" / "summary.json").write_text("{")
    os.utime(tmp_path / "runs" / "two", (1, 1))
    write_fake_run(tmp_path / "runs" / "bad", rows=[], outcome="failed", error="\x1b[2J\x07\nsecond", started=None)
    os.utime(tmp_path / "runs" / "bad", (2, 2))
    assert main(["runs", "runs", "runs/one"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["runs/three", "runs/one", "runs/bad", "runs/two", "runs/bad:"]
    assert lines[1].split()[1:5] == ["finished", "900/900", "0.3333", lines[1].split()[4]]
    assert "2026-11-01 10:00  2m 51s" in lines[1]
    assert lines[3].split()[1:3] == ["unknown", "5"]
    assert lines[4] == "runs/bad: ?[2J?"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_narrow_terminal_shows_fewer_columns_and_no_line_is_broken(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_fake_run(tmp_path / "runs" / "one", outcome="failed", error="what went wrong " * 9)
    shown = {}
    for columns in (40, 70, 200):
        monkeypatch.setenv("COLUMNS", str(columns))
        terminal = Terminal()
        monkeypatch.setattr(sys, "stdout", terminal)
        assert main(["runs"]) == 0
        shown[columns] = terminal.getvalue().splitlines()
        assert max(map(len, shown[columns])) <= columns
    assert shown[40][0].split() == ["run", "state", "steps", "loss"]
    assert "size" not in shown[70][0] and "started (UTC)" in shown[70][0]
    assert "size" in shown[200][0]
    assert shown[70][-1].endswith("…")
    assert not shown[200][-1].endswith("…")


def test_the_list_loads_nothing_heavy(finished):
    heavy = ("torch", "transformers", "numpy", "pydantic", "polars", "pandas", "rich", "matplotlib")
    assert loaded_by(f"from dumbo.cli.main import main\nmain(['runs', {str(finished)!r}])", *heavy) == []
