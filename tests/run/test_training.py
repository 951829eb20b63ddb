"""Whole runs from the command line: what they print, leave behind and repeat."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
import yaml

from dumbo.cli.main import main
from tests import builders
from tests.run.whole_runs import LEFT, SHIPPED, losses_of, metrics_of, run_here, weights_of, write_and_run

STEPS = 24
CHANGES = {
    "trainer.arguments.max_steps": STEPS,
    "trainer.arguments.learning_rate": 1e-2,
    "trainer.arguments.eval_strategy": "steps",
    "trainer.arguments.eval_steps": 8,
    "trainer.data.val_set_size": 2,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model_folder, rows_file):
    """The folder of a finished run, in it `run.yaml` and `out`."""
    folder = tmp_path_factory.mktemp("finished")
    write_and_run(folder, model_folder, rows_file, CHANGES)
    return folder


def test_the_loss_falls(finished):
    losses = losses_of(finished / "out")
    assert len(losses) == STEPS
    assert losses[0] == pytest.approx(math.log(512), rel=0.05), "a random model knows nothing"
    assert losses[-1] < 0.6 * losses[0]
    evaluations = losses_of(finished / "out", "eval/loss")
    assert len(evaluations) == 3
    assert evaluations[-1] < evaluations[0]


def test_a_run_leaves_its_configuration_metrics_and_model(finished):
    assert sorted(path.name for path in (finished / "out").iterdir()) == LEFT
    model = {path.name for path in (finished / "out" / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= model
    assert not [name for name in model if name.endswith((".bin", ".pt", ".pth", ".pkl", ".partial"))]


def test_every_line_of_the_metrics_has_its_step(finished):
    rows = metrics_of(finished / "out", timing=True)
    trained = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in trained] == list(range(1, STEPS + 1))
    paths = {"step", "train/loss", "train/grad_norm", "train/learning_rate", "train/epoch", "perf/tokens_per_second"}
    assert all(set(row) == paths and row["perf/tokens_per_second"] > 0 for row in trained)
    evaluated = [row for row in rows if "eval/loss" in row]
    assert [row["step"] for row in evaluated] == [8, 16, 24]
    assert len(rows) == len(trained) + len(evaluated)
    assert trained[-1]["train/epoch"] == 8, "ten rows are left to train on, in three steps of four"


def test_a_run_in_a_process_of_its_own_prints_plain_lines_and_comes_out_the_same(
    finished, tmp_path, model_folder, rows_file
):
    file, folder = builders.write_config(tmp_path, model_folder, rows_file, CHANGES), tmp_path / "out"
    result = builders.dumbo(file)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0] == f"{file}: {', '.join(SHIPPED)}"
    assert f"run folder {folder}" in lines
    assert "4 sequences per step = 2 per pass x 2 accumulated x 1 process" in lines
    assert sum(line.startswith("step ") for line in lines) == STEPS + 3
    assert lines[-2].startswith(f"trained {STEPS} steps in 0:")
    assert lines[-2].endswith(f"the model is in {folder / 'model'}")
    assert lines[-1] == f"report: {folder / 'report.html'}"
    assert "\x1b" not in result.stdout
    assert result.stderr == "", "no library says anything"
    assert metrics_of(folder) == metrics_of(finished / "out")
    first, second = weights_of(finished / "out" / "model"), weights_of(folder / "model")
    assert all(torch.equal(first[name], second[name]) for name in first)


LOAD = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = (auto.from_pretrained(sys.argv[1]) for auto in (AutoModelForCausalLM, AutoTokenizer))
ids = tokenizer("Add 3 and", return_tensors="pt").input_ids
made = model.generate(ids, attention_mask=ids.new_ones(ids.shape), max_new_tokens=12, do_sample=False)
print(json.dumps([model.config.use_cache, model.dtype.__str__(), tokenizer.decode(made[0, ids.shape[1]:])]))
"""


@pytest.mark.full
def test_the_model_loads_and_generates_without_dumbo(finished):
    command = [sys.executable, "-c", LOAD, str(finished / "out" / "model")]
    environment = builders.clean_environment()
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    use_cache, dtype, text = json.loads(result.stdout)
    assert use_cache is True
    assert dtype == "torch.float32"
    assert text.strip(), "it says something"


def test_the_saved_configuration_is_that_of_the_base_model(finished, model_folder):
    base, saved = (
        json.loads((path / "config.json").read_text()) for path in (model_folder, finished / "out" / "model")
    )
    assert saved == base


def test_the_run_is_repeated_from_its_own_configuration(finished, tmp_path):
    """In this process, whose state other runs have touched: nothing but the file counts."""
    torch.manual_seed(123)
    assert main(["train", str(finished / "out" / "run.yaml"), f"trainer.output_dir={tmp_path / 'again'}"]) == 0
    assert metrics_of(tmp_path / "again") == metrics_of(finished / "out")
    first, again = weights_of(finished / "out" / "model"), weights_of(tmp_path / "again" / "model")
    assert all(torch.equal(first[name], again[name]) for name in first)
    one, other = (yaml.safe_load((path / "run.yaml").read_text()) for path in (finished / "out", tmp_path / "again"))
    assert one["trainer"].pop("output_dir") != other["trainer"].pop("output_dir")
    assert one == other


def test_a_second_run_does_not_overwrite_the_first(finished, capsys):
    before = (finished / "out" / "metrics.jsonl").read_text()
    assert main([str(finished / "run.yaml")]) == 2
    error = capsys.readouterr().err
    assert f"{finished / 'run.yaml'}:" in error
    assert "already holds a run" in error
    assert (finished / "out" / "metrics.jsonl").read_text() == before


def test_another_seed_is_another_run(tmp_path, model_folder, rows_file):
    file = builders.write_config(tmp_path, model_folder, rows_file)
    one, same, other = (
        run_here(file, f"trainer.output_dir={tmp_path / name}", f"trainer.seed={seed}") and tmp_path / name
        for name, seed in (("one", 1), ("same", 1), ("other", 2))
    )
    assert metrics_of(one) == metrics_of(same)
    assert losses_of(one) != losses_of(other)
    names = weights_of(one / "model")
    equal = [
        all(torch.equal(weights_of(run / "model")[n], weights_of(one / "model")[n]) for n in names)
        for run in (same, other)
    ]
    assert equal == [True, False]


def test_dropout_follows_the_seed(tmp_path, model_folder, rows_file):
    changes = {"model.config_overrides": {"attention_dropout": 0.5}}
    runs = [write_and_run(tmp_path / name, model_folder, rows_file, changes) for name in ("one", "same")]
    plain = write_and_run(tmp_path / "plain", model_folder, rows_file)
    assert metrics_of(runs[0]) == metrics_of(runs[1])
    assert losses_of(runs[0]) != losses_of(plain)


def test_the_command_line_goes_before_the_file(tmp_path, model_folder, rows_file):
    file = builders.write_config(tmp_path, model_folder, rows_file)
    folder = run_here(file, "trainer.arguments.learning_rate=3e-4", "trainer.arguments.max_steps=3")
    assert losses_of(folder, "train/learning_rate") == pytest.approx([3e-4, 2e-4, 1e-4])
    resolved = yaml.safe_load((folder / "run.yaml").read_text())
    assert resolved["trainer"]["arguments"]["learning_rate"] == 3e-4


def test_a_plan_is_printed_and_nothing_is_done(config_file, capsys):
    assert main(["train", str(config_file), "--plan", "trainer.seed=8"]) == 0
    output = capsys.readouterr().out
    tree, _, order = output.partition("\nplugins, ")
    assert yaml.safe_load(tree)["trainer"]["seed"] == 8
    seats = dict(line.split(maxsplit=1) for line in order.splitlines()[1:])
    assert seats["load_model"] == seats["load_tokenizer"] == "transformers"
    assert seats["build_trainer"] == "transformers_trainer"
    assert seats["read"] == "polars"
    assert list(config_file.parent.iterdir()) == [config_file]


def test_a_plan_imports_neither_torch_nor_transformers(config_file):
    """In a process of its own, where nothing is imported yet."""
    code = (
        "import sys; from dumbo.cli.main import main; code = main(['train', sys.argv[1], '--plan']); "
        "print([name for name in ('torch', 'transformers', 'polars') if name in sys.modules]); sys.exit(code)"
    )
    command = [sys.executable, "-c", code, str(config_file)]
    result = subprocess.run(command, env=builders.clean_environment(), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"


def test_the_command_is_installed_under_its_name(config_file):
    command = [os.path.join(os.path.dirname(sys.executable), "dumbo"), str(config_file), "--plan"]  # noqa: PTH118, PTH120
    result = subprocess.run(command, env=builders.clean_environment(), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "load_model" in result.stdout


def test_a_run_without_a_folder_of_its_own_gets_one(tmp_path, model_folder, rows_file, monkeypatch):
    changes = {"trainer.output_dir": None, "trainer.arguments.max_steps": 1}
    file = builders.write_config(tmp_path, model_folder, rows_file, changes, name="mine.yaml")
    monkeypatch.chdir(tmp_path)
    assert main([str(file)]) == 0
    assert main([str(file)]) == 0
    folders = sorted((tmp_path / "runs").iterdir())
    assert len(folders) == 2
    assert all(folder.name.startswith("mine-20") and (folder / "model").is_dir() for folder in folders)


def test_checkpoints_are_written_every_so_many_steps(tmp_path, model_folder, rows_file):
    changes = {
        "trainer.arguments.max_steps": 5,
        "trainer.arguments.save_strategy": "steps",
        "trainer.arguments.save_steps": 2,
    }
    folder = write_and_run(tmp_path, model_folder, rows_file, changes)
    checkpoints = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert checkpoints == ["step-000002", "step-000004", "step-000005"]
    weights = [weights_of(folder / "checkpoints" / name) for name in checkpoints] + [weights_of(folder / "model")]
    name = "model.embed_tokens.weight"
    assert torch.equal(weights[2][name], weights[3][name])
    assert not torch.equal(weights[0][name], weights[1][name])
    assert not list(folder.rglob("*.partial"))
    assert not [path for path in folder.rglob("*") if path.suffix in {".bin", ".pt", ".pth", ".pkl"}]


def test_old_checkpoints_go(tmp_path, model_folder, rows_file):
    changes = {
        "trainer.arguments.max_steps": 4,
        "trainer.arguments.save_strategy": "steps",
        "trainer.arguments.save_steps": 1,
        "trainer.arguments.save_total_limit": 2,
    }
    folder = write_and_run(tmp_path, model_folder, rows_file, changes)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-000003", "step-000004"]


def test_evaluation_comes_when_it_is_asked_for(tmp_path, model_folder, rows_file):
    held_out = {"trainer.data.val_set_size": 4, "trainer.arguments.max_steps": 4}
    at_start = write_and_run(
        tmp_path / "start", model_folder, rows_file, held_out | {"trainer.arguments.eval_on_start": True}
    )
    rows = [row for row in metrics_of(at_start) if "eval/loss" in row]
    assert [row["step"] for row in rows] == [0, 2, 4], "eight rows are two steps of four: an epoch"
    assert rows[0]["eval/loss"] == pytest.approx(math.log(512), rel=0.05)
    delayed = write_and_run(
        tmp_path / "delayed", model_folder, rows_file, held_out | {"trainer.arguments.eval_delay": 2}
    )
    assert [row["step"] for row in metrics_of(delayed) if "eval/loss" in row] == [4]
    assert losses_of(at_start) == losses_of(delayed), "evaluating changes nothing about the training"


def test_workers_that_prepare_batches_change_nothing(tmp_path, model_folder, rows_file):
    alone = write_and_run(tmp_path / "alone", model_folder, rows_file)
    workers = {"trainer.arguments.dataloader_num_workers": 1}
    assert metrics_of(write_and_run(tmp_path / "workers", model_folder, rows_file, workers)) == metrics_of(alone)


def test_gradient_checkpointing_changes_nothing_but_memory(tmp_path, model_folder, rows_file):
    plain = write_and_run(tmp_path / "plain", model_folder, rows_file)
    changes = {"trainer.arguments.gradient_checkpointing": True}
    checkpointed = write_and_run(tmp_path / "checkpointed", model_folder, rows_file, changes)
    assert losses_of(checkpointed) == pytest.approx(losses_of(plain), rel=1e-6)


def test_bfloat16_computes_in_16_bits_over_weights_in_32(tmp_path, model_folder, rows_file, capsys):
    plain = losses_of(write_and_run(tmp_path / "plain", model_folder, rows_file))
    folder = write_and_run(tmp_path / "half", model_folder, rows_file, {"trainer.arguments.bf16": True})
    assert "computing in bfloat16" in capsys.readouterr().out
    assert losses_of(folder) != plain
    assert losses_of(folder) == pytest.approx(plain, rel=1e-2)
    assert all(tensor.dtype == torch.float32 for tensor in weights_of(folder / "model").values())


def test_a_number_of_steps_goes_before_epochs_and_says_so(tmp_path, model_folder, rows_file, capsys):
    changes = {"trainer.arguments.max_steps": 1, "trainer.arguments.num_train_epochs": 2.0}
    assert len(losses_of(write_and_run(tmp_path, model_folder, rows_file, changes))) == 1
    assert "max_steps: 1 goes before num_train_epochs: 2" in capsys.readouterr().out
