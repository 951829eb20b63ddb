"""`load_best_model_at_end`: a run ends with the weights of its best evaluation, whatever came after."""

import pytest
import torch

from dumbo.bridge.best import is_greater_better, metric_path
from dumbo.cli.main import main
from tests import builders
from tests.run.whole_runs import losses_of, metrics_of, weights_of, write_and_run

RISING = {
    "trainer.arguments.max_steps": 6,
    "trainer.arguments.learning_rate": 1.0,
    "trainer.arguments.lr_scheduler_type": "constant",
    "trainer.arguments.eval_strategy": "steps",
    "trainer.arguments.eval_steps": 1,
    "trainer.arguments.save_strategy": "steps",
    "trainer.arguments.save_steps": 1,
    "trainer.data.val_set_size": 4,
}
KEEPING = RISING | {"trainer.arguments.load_best_model_at_end": True}


def best_step(folder, choose):
    losses = {row["step"]: row["eval/loss"] for row in metrics_of(folder) if "eval/loss" in row}
    assert len(losses) == 6
    return choose(losses, key=losses.get)


@pytest.mark.parametrize(("greater", "choose"), [(None, min), (True, max)])
def test_the_weights_are_those_of_the_best_step(tmp_path, model_folder, rows_file, capsys, greater, choose):
    changes = KEEPING | ({"trainer.arguments.greater_is_better": greater} if greater is not None else {})
    folder = write_and_run(tmp_path, model_folder, rows_file, changes)
    step = best_step(folder, choose)
    assert step != 6, "else this would show nothing"
    kept, best = weights_of(folder / "model"), weights_of(folder / "checkpoints" / f"step-{step:06}")
    assert all(torch.equal(kept[name], best[name]) for name in best)
    assert all(torch.equal(weights_of(folder / "checkpoints" / "best")[name], best[name]) for name in best)
    assert f"at step {step}: the model ends with those weights" in capsys.readouterr().out


def test_without_it_the_weights_are_the_last_ones_and_nothing_else_differs(tmp_path, model_folder, rows_file):
    plain = write_and_run(tmp_path / "plain", model_folder, rows_file, RISING)
    last = weights_of(plain / "checkpoints" / "step-000006")
    assert all(torch.equal(weights_of(plain / "model")[name], last[name]) for name in last)
    keeping = write_and_run(tmp_path / "keeping", model_folder, rows_file, KEEPING)
    assert metrics_of(keeping) == metrics_of(plain)


def test_an_evaluation_before_the_first_step_does_not_count(tmp_path, model_folder, rows_file):
    changes = KEEPING | {"trainer.arguments.eval_on_start": True, "trainer.arguments.learning_rate": 10.0}
    folder = write_and_run(tmp_path, model_folder, rows_file, changes)
    losses = losses_of(folder, "eval/loss")
    assert losses[0] == min(losses), "training only spoils this model"
    assert (folder / "checkpoints" / "best").is_dir()


def test_a_metric_that_is_not_reported_ends_the_run(tmp_path, model_folder, rows_file, capsys):
    changes = KEEPING | {"trainer.arguments.metric_for_best_model": "eval/bleu"}
    file = builders.write_config(tmp_path, model_folder, rows_file, changes)
    assert main(["train", str(file)]) == 2
    message = capsys.readouterr().err
    assert "trainer.arguments.metric_for_best_model: no evaluation reports 'eval/bleu'" in message
    assert "they report: eval/loss" in message


@pytest.mark.parametrize("name", ["load_best_model_at_end", "metric_for_best_model", "greater_is_better"])
def test_without_evaluations_the_keys_are_refused(tmp_path, model_folder, rows_file, capsys, name):
    value = {"metric_for_best_model": "eval/loss"}.get(name, True)
    file = builders.write_config(tmp_path, model_folder, rows_file, {f"trainer.arguments.{name}": value})
    assert main(["check", str(file)]) == 2
    assert f"trainer.arguments.{name}: has no effect here" in capsys.readouterr().err


def test_names_and_directions():
    assert [metric_path(name) for name in ("loss", "eval_loss", "eval/loss")] == ["eval/loss"] * 3
    assert metric_path("eval_exact_match") == "eval/exact_match"
    assert not is_greater_better("eval/loss", None) and not is_greater_better("eval/perplexity", None)
    assert is_greater_better("eval/exact_match", None) and is_greater_better("eval/loss", True)
