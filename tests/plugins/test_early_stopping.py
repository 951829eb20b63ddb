"""The early_stopping plugin ends a run after evaluations that are no better, and says which was best."""

import json
import math

import pytest
from transformers import TrainerControl, TrainerState

from dumbo.cli.main import main
from dumbo.errors import ConfigError
from dumbo.plugins.early_stopping.plugin import EarlyStoppingOptions
from dumbo.plugins.early_stopping.stopping import StopWhenNoBetter
from tests import builders
from tests.run.whole_runs import SHIPPED, losses_of, write_and_run

PLUGINS = [*SHIPPED, "early_stopping"]


class Training:
    """Hands evaluations to the callback, and keeps what it tells."""

    def __init__(self, **options):
        self.said, self.notes = [], {}
        self.callback = StopWhenNoBetter(EarlyStoppingOptions(**options), self.said.append, self.notes.__setitem__)
        self.callback.on_train_begin(None, None, None)

    def stops_after(self, values, name="eval_loss", first_step=1):
        """The number of evaluations until it stops; None if it goes on."""
        control = TrainerControl()
        for count, value in enumerate(values, start=1):
            state = TrainerState(global_step=first_step + count - 1, max_steps=100)
            self.callback.on_evaluate(None, state, control, metrics={name: value, "eval_other": 1.0})
            if control.should_training_stop:
                return count
        return None


@pytest.mark.parametrize(
    ("options", "values", "stops"),
    [
        ({"patience": 2}, [3, 2, 2.5, 2.2, 1], 4),
        ({"patience": 2}, [3, 2, 2.5, 1.9, 2, 1.8], None),
        ({"patience": 1}, [3, 3], 2),
        ({"patience": 1, "min_delta": 0.5}, [3, 2.6], 2),
        ({"patience": 1, "min_delta": 0.5}, [3, 2.4, 1.8], None),
        ({"patience": 2, "min_delta": 0.5}, [3, 2.7, 2.4, 2.2, 2.0], 5),
        ({"patience": 1, "mode": "max"}, [1, 2, 3, 2.9], 4),
        ({"patience": 2}, [math.nan, math.nan], 2),
        ({"patience": 2}, [math.nan, 5, math.inf, 4, math.nan, 6], 6),
        ({}, [1, 1, 1, 1], 4),
    ],
)
def test_patience_counts_evaluations_without_a_better_value(options, values, stops):
    assert Training(**options).stops_after(values) == stops


@pytest.mark.parametrize(
    ("metric", "name", "greater"),
    [
        ("eval/exact_match", "eval_exact_match", True),
        ("eval/token_perplexity", "eval_token_perplexity", False),
        ("loss", "eval_loss", False),
        ("eval_accuracy", "eval_accuracy", True),
    ],
)
def test_the_direction_follows_from_the_name_and_is_told(metric, name, greater):
    training = Training(metric=metric, patience=1)
    word = "higher" if greater else "lower"
    path = name.replace("_", "/", 1)
    assert training.said == [f"early stopping: after 1 evaluation without a better {path} ({word} is better)"]
    assert training.stops_after([1, 2, 3] if greater else [3, 2, 1], name) is None
    assert training.stops_after([1] if greater else [3], name, first_step=4) == 1


def test_what_was_best_is_told_and_kept():
    training = Training(patience=2, min_delta=0.1)
    assert training.stops_after([3, 2, 2.5, 2.2]) == 4
    assert training.said[1] == (
        "early stopping: step 4 ends the training: eval/loss not better by more than 0.1 in 2 evaluations; "
        "the best was 2 at step 2"
    )
    assert training.notes == {"early_stopping": {"metric": "eval/loss", "step": 4, "best": 2, "best_step": 2}}


def test_the_evaluation_before_the_first_step_does_not_count():
    assert Training(patience=1).stops_after([1, 5, 4, 3], first_step=0) is None


def test_a_metric_that_is_not_reported_is_an_error_with_those_that_are():
    with pytest.raises(ConfigError) as caught:
        Training(metric="eval/bleu").stops_after([1])
    assert str(caught.value) == (
        "trainer.early_stopping.metric: no evaluation reports 'eval/bleu'\n    they report eval/loss, eval/other"
    )


CHANGES = {
    "trainer.arguments.max_steps": 8,
    "trainer.arguments.eval_strategy": "steps",
    "trainer.arguments.eval_steps": 1,
    "trainer.data.val_set_size": 2,
    "plugins": PLUGINS,
}


def test_a_run_ends_early(tmp_path, model_folder, rows_file, capsys):
    changes = CHANGES | {"trainer.early_stopping": {"patience": 2, "min_delta": 1.0}}
    folder = write_and_run(tmp_path, model_folder, rows_file, changes)
    said = capsys.readouterr().out
    assert len(losses_of(folder, "eval/loss")) == len(losses_of(folder)) == 3
    best = losses_of(folder, "eval/loss")[0]
    line = "early stopping: step 3 ends the training: eval/loss not better by more than 1 in 2 evaluations; "
    assert f"{line}the best was {best:.4g} at step 1" in said
    assert "trained 3 of 8 steps (a callback ended it)" in said
    assert json.loads((folder / "summary.json").read_text())["early_stopping"]["best_step"] == 1
    assert (folder / "model" / "model.safetensors").exists()


def test_a_run_that_gets_better_goes_to_its_end(tmp_path, model_folder, rows_file, capsys):
    folder = write_and_run(tmp_path, model_folder, rows_file, CHANGES | {"trainer.early_stopping": {"patience": 1}})
    assert len(losses_of(folder)) == 8
    assert "ends the training" not in capsys.readouterr().out


def test_a_metric_that_nobody_measures_is_found_before_the_run(tmp_path, model_folder, rows_file, capsys):
    file = builders.write_config(
        tmp_path, model_folder, rows_file, CHANGES | {"trainer.early_stopping.metric": "eval/exact_match"}
    )
    assert main(["check", str(file)]) == 2
    error = capsys.readouterr().err
    assert "trainer.early_stopping.metric: no plugin of this run measures 'eval/exact_match'" in error
    assert "measured are eval/loss" in error and "add 'exact_match' under plugins:" in error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"trainer.data.val_set_size": 0},
            "trainer.early_stopping: 'early_stopping' watches evaluations, and no rows are held out",
        ),
        (
            {"trainer.early_stopping": {"metric": "train/loss"}},
            "trainer.early_stopping.metric: 'train/loss' is not a metric of evaluations",
        ),
        ({"trainer.early_stopping": {"patience": 0}}, "trainer.early_stopping.patience: "),
        ({"trainer.early_stopping": {"min_delta": -1}}, "trainer.early_stopping.min_delta: "),
        ({"trainer.early_stopping": {"mode": "up"}}, "trainer.early_stopping.mode: "),
    ],
)
def test_mistakes_are_found_by_check(tmp_path, model_folder, rows_file, capsys, changes, message):
    file = builders.write_config(
        tmp_path, model_folder, rows_file, {"trainer.data.val_set_size": 2, "plugins": PLUGINS, **changes}
    )
    assert main(["check", str(file)]) == 2
    assert message in capsys.readouterr().err
