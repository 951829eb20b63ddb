"""`load_best_model_at_end`: a run ends with the weights of its best evaluation, whatever came after."""

import pytest
import torch

from dumbo.cli.main import main
from dumbo.metrics import evaluation_path, higher_is_better, logged_path
from tests import builders
from tests.run.whole_runs import SHIPPED, losses_of, metrics_of, weights_of, write_and_run

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


def test_a_metric_that_nobody_measures_is_found_before_the_run(tmp_path, model_folder, rows_file, capsys):
    changes = KEEPING | {"trainer.arguments.metric_for_best_model": "eval/exact_match"}
    file = builders.write_config(tmp_path, model_folder, rows_file, changes)
    assert main(["check", str(file)]) == 2
    message = capsys.readouterr().err
    assert "trainer.arguments.metric_for_best_model: no plugin of this run measures 'eval/exact_match'" in message
    assert "measured are eval/loss" in message and "add 'exact_match' under plugins:" in message


OWN = """
from dumbo.plugin_loader import EvaluatorPlugin

class LengthPlugin(EvaluatorPlugin):
    def build_evaluator(self, config):
        return lambda: {"rouge/l": 0.5}
"""


def test_a_metric_of_ones_own_is_found_by_its_path(tmp_path, model_folder, rows_file, capsys):
    """An evaluator that does not declare what it measures: what it did not report is an error at the first chance."""
    plugins = {"plugins": [*SHIPPED, "./own.py:LengthPlugin"]}
    for name, code in (("eval/rouge/l", 0), ("eval/rouge/x", 2)):
        changes = KEEPING | plugins | {"trainer.arguments.metric_for_best_model": name}
        changes["trainer.arguments.greater_is_better"] = True
        file = builders.write_config(tmp_path / str(code), model_folder, rows_file, changes)
        (file.parent / "own.py").write_text(OWN)
        assert main(["train", str(file)]) == code
    message = capsys.readouterr().err
    assert "no evaluation reports 'eval/rouge/x'" in message and "they report: eval/loss, eval/rouge/l" in message


@pytest.mark.parametrize("name", ["eval/bleurt", "bleurt"])
def test_which_way_is_better_must_be_known(tmp_path, model_folder, rows_file, capsys, name):
    (tmp_path / "own.py").write_text(OWN)
    plugins = {"plugins": [*SHIPPED, "./own.py:LengthPlugin"]}
    changes = KEEPING | plugins | {"trainer.arguments.metric_for_best_model": name}
    assert main(["check", str(builders.write_config(tmp_path, model_folder, rows_file, changes))]) == 2
    assert "whether more or less of 'eval/bleurt' is better is not known" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["load_best_model_at_end", "metric_for_best_model", "greater_is_better"])
def test_without_evaluations_the_keys_are_refused(tmp_path, model_folder, rows_file, capsys, name):
    value = {"metric_for_best_model": "eval/loss"}.get(name, True)
    file = builders.write_config(tmp_path, model_folder, rows_file, {f"trainer.arguments.{name}": value})
    assert main(["check", str(file)]) == 2
    assert f"trainer.arguments.{name}: has no effect here" in capsys.readouterr().err


def test_names_and_directions():
    assert [evaluation_path(name) for name in ("loss", "eval_loss", "eval/loss")] == ["eval/loss"] * 3
    assert logged_path("eval_exact_match") == "eval/exact_match" and logged_path("loss") == "train/loss"
    assert logged_path("eval_rouge/l") == "eval/rouge/l" == evaluation_path("rouge/l")
    assert higher_is_better("eval/loss") is False and higher_is_better("eval/wer") is False
    assert higher_is_better("eval/exact_match") is True and higher_is_better("eval/rouge_l") is True
    assert higher_is_better("eval/bleurt") is None


def test_an_interrupted_run_keeps_the_weights_that_it_had(tmp_path, model_folder, rows_file, monkeypatch, capsys):
    """Ctrl-C while step 5 is made: what is saved then is step 5, not the best step so far."""
    import os
    import signal

    from dumbo.bridge.callbacks import ShowProgress

    def press(self, args, state, control, **more):
        if state.global_step == 4:
            os.kill(os.getpid(), signal.SIGINT)

    whole = write_and_run(tmp_path / "whole", model_folder, rows_file, RISING)
    monkeypatch.setattr(ShowProgress, "on_step_begin", press)
    file = builders.write_config(tmp_path / "stopped", model_folder, rows_file, KEEPING)
    assert main(["train", str(file)]) == 130
    stopped = tmp_path / "stopped" / "out"
    last = stopped / "checkpoints" / "step-000005"
    expected = weights_of(whole / "checkpoints" / "step-000005")
    assert all(torch.equal(weights_of(last)[name], expected[name]) for name in expected)
    assert "its weights are in" in capsys.readouterr().out
