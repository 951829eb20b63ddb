"""Which run and which checkpoint a run goes on from, and what it does with what was left."""

import json
import os
import signal
from dataclasses import replace

import pytest

from dumbo.checkpoint.manifest import Manifest
from dumbo.cli.main import main
from dumbo.run_folder import default_folders
from tests import builders
from tests.faults.stopping import assert_same_run, checkpoints_in, stop_by, weights_in, write_stoppable
from tests.run.whole_runs import metrics_of, printed_by

MOMENTS = '''
import os
import signal

from dumbo.plugin_loader import CallbackPlugin, ModelPatcherPlugin, OutputPlugin


class MomentsPlugin(CallbackPlugin, ModelPatcherPlugin, OutputPlugin):
    """Does something at a moment of a run: `DUMBO_MOMENT=on_save@6:SIGTERM`; `RAISE` raises. Every run ends with the
    evaluation of step 6, where `DUMBO_ENDS` is set."""

    name = "moments"

    def act(self, moment):
        at, _, what = os.environ.get("DUMBO_MOMENT", "").partition(":")
        if at != moment:
            return
        if what == "RAISE":
            raise ValueError("no more than this")
        os.kill(os.getpid(), getattr(signal, what))

    def patch_model(self, model, config):
        self.act("patch_model")
        return model

    def after_train(self, artifact, config):
        self.act("after_train")
        return artifact

    def get_callbacks(self, config):
        from transformers import TrainerCallback

        plugin = self

        class Moments(TrainerCallback):
            def on_evaluate(self, args, state, control, **more):
                if "DUMBO_ENDS" in os.environ and state.global_step == 6:
                    control.should_training_stop = True
                plugin.act(f"on_evaluate@{state.global_step}")

            def on_save(self, args, state, control, **more):
                plugin.act(f"on_save@{state.global_step}")

            def on_log(self, args, state, control, **more):
                plugin.act(f"on_log@{state.global_step}")

            def on_substep_end(self, args, state, control, **more):
                plugin.act(f"on_substep_end@{state.global_step}")

        return [Moments()]
'''

LATER = ("on_substep_end@7", "on_evaluate@12", "on_save@6")
SAVES = {"trainer.arguments.save_strategy": "steps", "trainer.arguments.save_steps": 3}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return builders.write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", builders.alpaca_rows(26))


@pytest.fixture
def start(tmp_path, model_folder, rows):
    """Writes the configuration of a run in a folder of that name."""

    def write(name="run", **changes):
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        plugins = dotted.pop("plugins", ())
        chosen = (dotted.pop("model", model_folder), dotted.pop("rows", rows))
        own = (*plugins, "./moments.py:MomentsPlugin")
        file = write_stoppable(tmp_path / name, *chosen, {**SAVES, **dotted}, own)
        (file.parent / "moments.py").write_text(MOMENTS)
        return file

    return write


def stop_at(step, file, *words):
    with stop_by("SIGTERM", step):
        assert main(["train", str(file), *words]) == 75


def steps_of(out):
    return [row["step"] for row in metrics_of(out) if "train/loss" in row]


@pytest.mark.parametrize("moment", ["on_save@6", pytest.param("on_evaluate@6", marks=pytest.mark.full)])
def test_who_asks_for_the_end_of_what_has_ended_is_late(start, monkeypatch, moment):
    """The run is as finished as without the signal, and its checkpoint stays whole."""
    monkeypatch.setenv("DUMBO_ENDS", "1")
    by_steps = {"trainer__arguments__eval_strategy": "steps", "trainer__arguments__eval_steps": 3}
    whole, asked = start("whole", **by_steps), start("asked", **by_steps)
    assert main(["train", str(whole)]) == 0
    monkeypatch.setenv("DUMBO_MOMENT", f"{moment}:SIGTERM")
    assert main(["train", str(asked)]) == 0
    out = asked.parent / "out"
    assert_same_run(out, whole.parent / "out")
    checkpoint = out / "checkpoints" / "step-000006"
    Manifest.read(checkpoint).check(checkpoint)


def test_a_stop_without_a_checkpoint(start, monkeypatch, capsys):
    """The weights are kept where nothing takes them for a checkpoint, and the run goes on from the one before."""
    from dumbo.checkpoint import folder

    real = folder.sealed_files

    def refused(partial):
        if partial.name.startswith("step-000005"):
            raise OSError("the disk is gone")
        return real(partial)

    whole, file = start("whole"), start("run")
    assert main(["train", str(whole)]) == 0
    monkeypatch.setattr(folder, "sealed_files", refused)
    with stop_by("SIGTERM", 5):
        said = printed_by(capsys, 75, "train", str(file)).err
    out = file.parent / "out"
    assert checkpoints_in(out) == ["step-000003", "stopped-000005"]
    assert f"the model as it was is in {out / 'checkpoints' / 'stopped-000005'}" in said and "to go on" not in said
    assert weights_in(out / "checkpoints" / "stopped-000005")
    assert "after step 3 (step-000003)" in printed_by(capsys, 0, "train", str(file), "--resume").out
    assert_same_run(out, whole.parent / "out")


def test_a_longer_run_that_is_stopped_goes_on(start, capsys):
    """The model of the shorter one does not make it a finished one."""
    longer = ["trainer.arguments.num_train_epochs=4"]
    allowed = [*longer, "--allow-change", "trainer.arguments.num_train_epochs"]
    files = whole, file = start("whole"), start("run")
    for each in files:
        assert main(["train", str(each)]) == 0
    assert main(["train", str(whole), "--resume", *allowed]) == 0
    with stop_by("SIGTERM", 20):
        said = printed_by(capsys, 75, "train", str(file), "--resume", *allowed).err
    assert f"to go on: dumbo train {file} trainer.arguments.num_train_epochs=4 --resume\n" in said
    assert "after step 20 (step-000020)" in printed_by(capsys, 0, "train", str(file), *longer, "--resume").out
    assert_same_run(file.parent / "out", whole.parent / "out")
    assert "is finished" in printed_by(capsys, 0, "train", str(file), "--resume", *allowed).err


def test_another_way_from_an_older_checkpoint(start, capsys):
    """What comes after it is kept, and no longer the run's."""
    file = start()
    out = file.parent / "out"
    stop_at(7, file)
    rate = "trainer.arguments.learning_rate=0.0001"
    words = ["--resume", "--from", str(out / "checkpoints" / "step-000003"), "--allow-change", rate.partition("=")[0]]
    with stop_by("SIGTERM", 5):
        said = printed_by(capsys, 75, "train", str(file), rate, *words).out
    aside = [out / "checkpoints" / f"step-{step:06}.aside" for step in (6, 7)]
    assert all(f"a later checkpoint is kept as {path}" in said for path in aside)
    assert checkpoints_in(out) == ["step-000003", "step-000005", *(path.name for path in aside)]
    assert "after step 5 (step-000005)" in printed_by(capsys, 0, "train", str(file), rate, "--resume").out
    assert steps_of(out) == [1, 4, 8, 12, 16, 18]
    back = printed_by(capsys, 0, "train", str(file), "--resume", "--from", str(aside[1])).out
    assert "after step 7 (step-000007)" in back, "it has the old rate"
    assert {"step-000009", "step-000009.aside", "step-000018", "step-000018.aside"} <= {*checkpoints_in(out)}


def test_only_runs_of_this_configuration(start, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    named = ("a", "lora.yaml"), ("b", "lora-big.yaml"), ("c", "lora.yaml")
    ours, longer, other = (start(folder).rename(tmp_path / folder / name) for folder, name in named)
    for file in (ours, longer, other):
        kept = [line for line in file.read_text().splitlines() if "output_dir" not in line]
        file.write_text("\n".join(kept))
    for file in (longer, other):
        stop_at(2, file)
    assert default_folders(ours) == []
    assert [folder.name.rpartition("-20")[0] for folder in default_folders(other)] == ["lora"]
    monkeypatch.chdir(next((tmp_path / "runs").glob("lora-big-*/checkpoints/step-000002")))
    assert "after step 2" in printed_by(capsys, 0, "train", str(longer), "--resume", "--from", ".").out


def test_the_way_on_is_the_whole_command(start, tmp_path, capsys):
    file = start()
    elsewhere = f"trainer.output_dir={tmp_path / 'else where'}"
    with stop_by("SIGTERM", 2):
        said = printed_by(capsys, 75, "train", str(file), elsewhere).err
    assert f"to go on: dumbo train {file} '{elsewhere}' --resume\n" in said
    with stop_by("SIGTERM", 3):
        said = printed_by(capsys, 75, "train", str(file), "--resume", "--from", str(tmp_path / "else where")).err
    assert f"to go on: dumbo train {file} --resume --from '{tmp_path / 'else where'}'\n" in said


@pytest.mark.full
def test_rows_of_a_stream_that_changed(start, tmp_path, capsys):
    streamed = {
        "trainer__data__streaming": True,
        "trainer__data__sequence_length": 200,
        "trainer__data__val_set_size": 0,
        "trainer__arguments__max_steps": 6,
        "trainer__arguments__num_train_epochs": builders.REMOVE,
        "trainer__arguments__eval_strategy": builders.REMOVE,
    }
    mine = builders.write_rows(tmp_path / "mine.jsonl", builders.alpaca_rows(26))
    file = start(rows=mine, **streamed)
    stop_at(2, file)
    text = mine.read_text()
    mine.write_text(text.replace("The sum is 5", "The sum is 6"))
    said = printed_by(capsys, 2, "train", str(file), "--resume").err
    assert "the rows are not those of the checkpoint" in said and "--allow-change datasets" in said
    moved = tmp_path / "moved.jsonl"
    moved.write_text(text)
    stop_at(4, file, "--resume", f"datasets.0.path={moved}")
    assert main(["train", str(file), "--resume", "--allow-change", "datasets"]) == 0
    several = start("several", rows=mine, **streamed, trainer__data__mix="rows")
    written = several.read_text()
    entry = written[written.index("datasets:\n") + len("datasets:\n") : written.index("trainer:")]
    several.write_text(written.replace(entry, 2 * entry))
    stop_at(2, several)
    several.write_text(written.replace(entry, 3 * entry))
    said = printed_by(capsys, 2, "train", str(several), "--resume").err
    assert "the checkpoint has a stream of 2 sources, and this one has 3" in said


def test_another_model_under_an_adapter(start, tmp_path, tokenizer, capsys):
    base = builders.save_tiny_model(tmp_path / "base", tokenizer)
    file = start(model=base, plugins=("peft",), **{"model__peft__rank": 4})
    stop_at(2, file)
    stop_at(3, file, "--resume")
    builders.save_tiny_model(base, tokenizer, initializer_range=0.05)
    said = printed_by(capsys, 2, "train", str(file), "--resume").err
    assert "the model under the adapter is not that of the checkpoint: model.base_model has other weights" in said


@pytest.mark.parametrize("moment", ["patch_model", "after_train"])
def test_a_signal_for_a_checkpoint_where_there_is_none_to_write(start, monkeypatch, moment):
    monkeypatch.setenv("DUMBO_MOMENT", f"{moment}:SIGUSR1")
    before = signal.getsignal(signal.SIGUSR1)
    assert main(["train", str(start(trainer__arguments__num_train_epochs=1))]) == 0
    assert signal.getsignal(signal.SIGUSR1) is before


@pytest.mark.full
def test_what_comes_after_the_training_comes_again(start, monkeypatch, capsys):
    monkeypatch.setenv("DUMBO_MOMENT", "after_train:RAISE")
    file, without = start(), start("without")
    written = without.read_text()
    without.write_text(written.replace("    save_strategy: steps\n", "").replace("    save_steps: 3\n", ""))
    for each in (file, without):
        assert "no more than this" in printed_by(capsys, 2, "train", str(each)).err
    assert "no more than this" in printed_by(capsys, 2, "train", str(file), "--resume").err
    monkeypatch.delenv("DUMBO_MOMENT")
    assert main(["train", str(file), "--resume"]) == 0
    assert json.loads((file.parent / "out" / "summary.json").read_text())["outcome"] == "finished"
    assert "is finished" in printed_by(capsys, 0, "train", str(file), "--resume").err
    said = printed_by(capsys, 2, "train", str(without), "--resume").err
    assert "has trained to its end, failed after it, and has no checkpoint" in said


@pytest.mark.parametrize("moment", ["on_log@4", *(pytest.param(m, marks=pytest.mark.full) for m in LATER)])
def test_what_was_trained_before_a_plugin_failed_is_kept(start, monkeypatch, capsys, moment):
    whole, file = start("whole", trainer__arguments__save_steps=100), start(trainer__arguments__save_steps=100)
    if moment == "on_save@6":
        file.write_text(file.read_text().replace("save_steps: 100", "save_steps: 6"))
    assert main(["train", str(whole)]) == 0
    monkeypatch.setenv("DUMBO_MOMENT", f"{moment}:RAISE")
    said = printed_by(capsys, 2, "train", str(file))
    assert "plugin 'moments' failed during training: ValueError: no more than this" in said.err
    step = int(moment.partition("@")[2])
    assert f"step-{step:06}" in checkpoints_in(file.parent / "out")
    monkeypatch.delenv("DUMBO_MOMENT")
    assert f"after step {step} " in printed_by(capsys, 0, "train", str(file), "--resume").out
    out = file.parent / "out"
    ours, theirs = weights_in(out / "model"), weights_in(whole.parent / "out" / "model")
    assert all((ours[name] == theirs[name]).all() for name in theirs)
    logged = [metrics_of(out), metrics_of(whole.parent / "out")]
    evaluated = [[row["eval/loss"] for row in rows if "eval/loss" in row] for rows in logged]
    assert evaluated[0] == evaluated[1] and len(evaluated[0]) == 3


@pytest.mark.full
def test_a_schedule_that_was_changed(start, capsys):
    """Options of the schedule count from the next step on; one that goes by evaluations cannot be changed."""
    cosine = {"trainer__arguments__lr_scheduler_type": "cosine_with_restarts"}
    cosine |= {"trainer__arguments__lr_scheduler_kwargs": {"num_cycles": 1}, "trainer__arguments__logging_steps": 1}
    cycles = "trainer.arguments.lr_scheduler_kwargs.num_cycles=3"
    file, other = start(**cosine), start("other", **cosine)
    assert main(["train", str(other), cycles]) == 0
    stop_at(5, file)
    allowed = [cycles, "--allow-change", "trainer.arguments.lr_scheduler_kwargs"]
    assert main(["train", str(file), "--resume", *allowed]) == 0
    rates = [
        {row["step"]: row["train/learning_rate"] for row in metrics_of(each.parent / "out") if "train/loss" in row}
        for each in (file, other)
    ]
    assert {step: rates[0][step] for step in range(6, 19)} == {step: rates[1][step] for step in range(6, 19)}
    plateau = start("plateau", trainer__arguments__lr_scheduler_type="reduce_lr_on_plateau")
    stop_at(5, plateau)
    rate = "trainer.arguments.learning_rate"
    said = printed_by(capsys, 2, "train", str(plateau), f"{rate}=0.01", "--resume", "--allow-change", rate).err
    assert "a schedule that goes by the evaluations (reduce_lr_on_plateau) cannot be changed on the way" in said
    assert main(["train", str(plateau), "--resume"]) == 0


def test_other_versions_are_told(start, capsys):
    file = start()
    stop_at(2, file)
    checkpoint = file.parent / "out" / "checkpoints" / "step-000002"
    manifest = Manifest.read(checkpoint)
    replace(manifest, versions={**manifest.versions, "torch": "1.0"}).write(checkpoint)
    said = printed_by(capsys, 0, "train", str(file), "--resume").out
    assert f"was written with torch 1.0 (now {manifest.versions['torch']}): what follows may differ" in said


def test_an_end_at_once_says_what_is_kept(start, monkeypatch, capsys):
    """A second Ctrl-C, while the first one's step ends."""
    # In the background a shell has it ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setenv("DUMBO_MOMENT", "on_log@4:SIGINT")
    file = start(trainer__arguments__logging_steps=2)
    try:
        with stop_by("SIGINT", 4):
            said = printed_by(capsys, 130, "train", str(file)).err
    finally:
        signal.signal(signal.SIGINT, before)
    assert "stopped at once, after step 4; the last checkpoint is that of step 3" in said
    assert os.path.isdir(file.parent / "out" / "checkpoints" / "step-000003")  # noqa: PTH112
