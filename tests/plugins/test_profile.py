"""The profile plugin writes a trace and a summary of the steps that were asked for, and changes no result."""

import json
import re
from types import MappingProxyType

import pytest

from dumbo.cli.main import main
from tests import builders
from tests.run.whole_runs import SHIPPED, metrics_of, weights_of, write_and_run

PLUGINS = [*SHIPPED, "profile"]
FOUR_STEPS = {"trainer.arguments.max_steps": 4, "plugins": PLUGINS}


def profiled(folder, model_folder, rows_file, changes=MappingProxyType({}), /, **options):
    """The folder of the profile of a run, and the events of its trace."""
    run = write_and_run(folder, model_folder, rows_file, {**FOUR_STEPS, **changes, "trainer.profile": options})
    return run / "profile", json.loads((run / "profile" / "trace.json").read_text())["traceEvents"]


def steps_in(events):
    """How often the optimizer went a step."""
    return sum(str(event.get("name", "")).startswith("Optimizer.step#") and event.get("ph") == "X" for event in events)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, model_folder, rows_file):
    """The profile of one step, that others look at: its folder, and the events of its trace."""
    return profiled(tmp_path_factory.mktemp("plain"), model_folder, rows_file, start_step=3, num_steps=1)


def test_the_steps_asked_for_are_traced_and_nothing_else_changes(tmp_path, model_folder, rows_file, plain, capfd):
    assert steps_in(plain[1]) == 1
    capfd.readouterr()
    folder, events = profiled(tmp_path / "with", model_folder, rows_file, start_step=2, num_steps=2)
    said, error = capfd.readouterr()
    assert "profiler" not in error, "PyTorch's profiler is quiet"
    assert steps_in(events) == 2
    assert sorted(path.name for path in folder.iterdir()) == ["operators.txt", "trace.json"]
    assert f"the trace is in {folder}/trace.json" in said
    lines = (folder / "operators.txt").read_text().splitlines()
    assert "\n".join(lines[:8]) + "\n" in said, "title, header and the first six"
    assert lines[8] not in said
    plain = write_and_run(tmp_path / "without", model_folder, rows_file, FOUR_STEPS | {"plugins": SHIPPED})
    assert metrics_of(folder.parent) == metrics_of(plain)
    ours, theirs = weights_of(folder.parent / "model"), weights_of(plain / "model")
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_the_summary_is_sorted_adds_up_and_its_head_is_noted(plain):
    folder, _ = plain
    title, header, *rows = (folder / "operators.txt").read_text().splitlines()
    assert title == "profile of step 3: time in operators themselves, on the CPU"
    assert header.split() == ["share", "time", "calls", "operator"]
    shares = [float(row.split("%")[0]) for row in rows]
    assert len(rows) == 51 and rows[-1].endswith(" others)")
    assert shares[:-1] == sorted(shares[:-1], reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.05 * len(rows)), "each is rounded"
    calls = {row.split()[-1]: int(row.split()[3]) for row in rows}
    # Two passes of two layers with seven products each, and the output head, forward and twice backward.
    assert calls["aten::mm"] >= 2 * 3 * (2 * 7 + 1) - 2 * 2
    noted = json.loads((folder.parent / "summary.json").read_text())["profile"]
    assert (noted["first_step"], noted["last_step"]) == (3, 3)
    assert rows[0].split()[-1] in noted["share_of_time"]


def test_memory_shapes_and_stacks_are_there_where_asked_for(tmp_path, model_folder, rows_file, plain):
    words = {"memory": True, "record_shapes": True, "with_stack": True}
    # One pass with one row: each call of a Python function is an event.
    small = {"trainer.arguments.batch_size": 1, "trainer.arguments.physical_batch_size": 1}
    more, more_events = profiled(tmp_path, model_folder, rows_file, small, start_step=3, num_steps=1, **words)
    events = plain[1]
    texts = [(folder / "operators.txt").read_text() for folder in (plain[0], more)]
    assert ["MiB" in text for text in texts] == [False, True]
    assert [bool(re.search(r"aten::mm \[\[\d+, 32\]", text)) for text in texts] == [False, True]
    functions = [any(event.get("cat") == "python_function" for event in found) for found in (events, more_events)]
    assert functions == [False, True]
    assert [any(event.get("name") == "[memory]" for event in found) for found in (events, more_events)] == [False, True]


def test_a_training_that_ends_early_leaves_what_was_measured(tmp_path, model_folder, rows_file, capsys):
    (tmp_path / "ending.py").write_text(
        "from dumbo.plugin_loader import CallbackPlugin\n"
        "class EndingPlugin(CallbackPlugin):\n"
        "    def get_callbacks(self, config):\n"
        "        from transformers import TrainerCallback\n"
        "        class Ending(TrainerCallback):\n"
        "            def on_step_end(self, args, state, control, **more):\n"
        "                control.should_training_stop = state.global_step == 2\n"
        "        return [Ending()]\n"
    )
    changes = FOUR_STEPS | {"trainer.profile": {"start_step": 2}, "plugins": [*PLUGINS, "./ending.py:EndingPlugin"]}
    folder = write_and_run(tmp_path, model_folder, rows_file, changes | {"trainer.profile.num_steps": 3})
    assert steps_in(json.loads((folder / "profile" / "trace.json").read_text())["traceEvents"]) == 1
    assert "profile of step 2: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_step": 5}, "trainer.profile.start_step: step 7 is to be measured, and the training has 4 steps\n"),
        ({"num_steps": 3}, "trainer.profile.num_steps: step 5 is to be measured, and the training has 4 steps\n"),
        ({"start_step": 0}, "trainer.profile.start_step: "),
        ({"num_steps": 0}, "trainer.profile.num_steps: "),
        ({"memory": "yes"}, "trainer.profile.memory: "),
    ],
)
def test_mistakes_are_found_by_check(tmp_path, model_folder, rows_file, capsys, options, message):
    file = builders.write_config(tmp_path, model_folder, rows_file, FOUR_STEPS | {"trainer.profile": options})
    assert main(["check", str(file)]) == 2
    assert message in capsys.readouterr().err


def test_steps_after_the_last_epoch_are_refused_before_the_first_step(tmp_path, model_folder, rows_file, capsys):
    changes = {"trainer.arguments.max_steps": builders.REMOVE, "trainer.arguments.num_train_epochs": 1.0}
    file = builders.write_config(tmp_path, model_folder, rows_file, changes | {"plugins": PLUGINS})
    assert main(["check", str(file)]) == 0
    assert main([str(file)]) == 2
    printed = capsys.readouterr()
    assert "trainer.profile.num_steps: step 5 is to be measured, and the training has 3 steps\n" in printed.err
    assert "step 1/" not in printed.out
