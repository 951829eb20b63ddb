"""The watch plugin finds what is out of range, says it once, is silent about what is usual, and stops where asked."""

import json
import math
import re

import pytest

from dumbo.cli.main import main
from dumbo.plugins.watch.judging import Judge
from dumbo.plugins.watch.ranges import RANGES, WATCHED
from tests import builders
from tests.run.whole_runs import SHIPPED, losses_of, metrics_of, weights_of, write_and_run

PLUGINS = [*SHIPPED, "watch"]
FALLING = [10 * 0.97**n for n in range(100)]


def findings(logs, *, after=10, ignored=(), pretrained=True, vocab_size=None, every=1):
    """All that the judge says of a list of metrics, one a step."""
    judge = Judge(after, frozenset(ignored), pretrained)
    steps = enumerate(logs, start=1)
    return [line for step, metrics in steps for line in judge.findings(metrics, step * every, vocab_size)]


def losses(values, **more):
    return [{"train/loss": value, **more} for value in values]


MARK = {"grpo": {"train/reward": 0.5}, "dpo": {"train/rewards/accuracies": 0.8}, "ebft": {"train/ebft/alignment": 0.5}}


@pytest.mark.parametrize("row", RANGES, ids=lambda row: f"{row.method}-{row.metric}")
def test_every_row_of_the_table_acts(row):
    low, high = row.alarm
    beyond = high * 1.1 if high is not None else low - abs(low) * 0.1
    mark = MARK.get(row.method, {})
    bad = findings([{**mark, row.metric: beyond}] * (55 if row.reach_by else 30))
    assert len(bad) == 1, "once"
    start = row.reach_by if row.reach_by is not None else 10 + row.logs
    assert bad[0].startswith(f"step {start}: {row.metric} is ")
    assert f"(healthy: {row.shown()}): {row.meaning}; try {row.remedy}" in bad[0]
    healthy = [bound for bound in row.healthy if bound is not None]
    good = sum(healthy) / 2 if len(healthy) == 2 else healthy[0] * (1.1 if row.healthy[0] is not None else 0.9) + 1e-3
    assert findings([{**mark, row.metric: good}] * 40) == []
    if row.metric != next(iter(mark), None):
        others = {m: v for method, marks in MARK.items() if method != row.method for m, v in marks.items()}
        same_metric = [r for r in RANGES if r.metric == row.metric and r is not row]
        assert same_metric or findings([{**others, row.metric: beyond}] * 40) == [], "another method's metric"
    assert findings([{**mark, row.metric: beyond}] * 60, ignored=[row.metric]) == []


def test_one_outlier_is_no_alarm_and_neither_is_a_rough_start():
    calm = {"train/grad_norm": 1.0}
    assert findings(([calm] * 5 + [{"train/grad_norm": 500.0}]) * 20) == []
    assert findings([{"train/grad_norm": 500.0}] * 10 + [calm] * 30) == []
    assert len(findings([{"train/grad_norm": 500.0}] * 10 + [calm] * 30, after=0)) == 1


def test_a_reward_that_comes_once_has_come():
    logs = [{"train/reward": 0.2 if step == 7 else 0.05} for step in range(40)]
    assert findings(logs) == []


@pytest.mark.parametrize("name", ["train/loss", "eval/loss"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_a_number_is_an_alarm_at_once(name, value):
    found = findings([{name: value}] * 3)
    assert len(found) == 1
    assert found[0].startswith(f"step 1: {name} is {value}: ")


def test_gradients_that_are_not_numbers_now_and_then_are_usual():
    nan, fine = {"train/grad_norm": math.nan}, {"train/grad_norm": 1.0}
    assert findings([nan, nan, fine] * 20) == []
    assert findings([nan] * 5)[0].startswith("step 5: train/grad_norm is not a number in 5 logs")


def test_a_learning_rate_that_never_leaves_0():
    assert len(findings([{"train/learning_rate": 0.0}] * 9)) == 1
    assert findings([{"train/learning_rate": rate} for rate in (0, 0, 1e-5, *[0] * 40)]) == []


def test_a_gradient_of_exactly_0():
    assert findings([{"train/grad_norm": 0.0}] * 3)[0].startswith("step 3: train/grad_norm is exactly 0")
    assert findings([{"train/grad_norm": 0.0}, {"train/grad_norm": 1e-9}] * 30) == []
    assert findings([{"train/grad_norm": 0.0, "train/reward": 1.0}] * 30) == [], "no advantage in the batch"


def test_a_pretrained_model_that_guesses():
    guess = math.log(32000)
    ignored = {"vocab_size": 32000, "after": 1000}
    assert findings(losses([guess, guess * 0.96, guess * 0.95]), **ignored)[0].startswith(
        "step 3: train/loss is 9.85 from the start, which is guessing (ln 32000 = 10.4): the weights are not those"
    )
    assert findings(losses([guess] * 5), pretrained=False, **ignored) == [], "so starts every model from scratch"
    assert findings(losses([3.0, guess, guess, guess]), **ignored) == []


def test_a_loss_worse_than_guessing():
    logs = losses([*FALLING[:15], 20, 20, 20])
    assert findings(logs, vocab_size=1000, pretrained=False) == [
        "step 18: train/loss is 20, worse than guessing (ln 1000 = 6.91): "
        "the training has diverged; try a lower learning_rate, more warm-up"
    ]


def test_a_loss_that_rises():
    assert findings(losses([2.0] * 5 + [1.0] * 10 + [3.0] * 10), pretrained=False)[0].startswith(
        "step 21: train/loss has risen from 1 to 2.2 (means of 10 logs): "
    )
    noise = [0.01 if n % 3 else 0.05 for n in range(90)]
    assert findings(losses([*FALLING, *noise]), pretrained=False) == []


def test_a_loss_that_does_not_fall():
    flat = [1.5 + 0.1 * (-1) ** n for n in range(60)]
    assert findings(losses(flat))[0].startswith("step 50: train/loss has not fallen in 50 logs (1.5, now 1.5)")
    assert findings(losses([value - n * 0.002 for n, value in enumerate(flat)])) == []
    assert findings(losses([0.01] * 60)) == [], "learned by heart before"
    assert findings(losses(flat, **MARK["grpo"])) == [], "the loss of GRPO says nothing"


CHANGES = {"trainer.arguments.max_steps": 6, "model.tokenizer.eos_token": "<|im_end|>", "plugins": PLUGINS}
DIVERGING = {"trainer.arguments.learning_rate": 1.0, "trainer.arguments.max_grad_norm": 1000.0}


def test_a_warning_changes_nothing_but_is_told_once(tmp_path, model_folder, rows_file, capsys):
    changes = CHANGES | DIVERGING | {"trainer.watch": {"after": 0}}
    folder = write_and_run(tmp_path / "watched", model_folder, rows_file, changes)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("watch: ")]
    assert len(said) == len({re.sub(r"step \d+|[\d.]+", "", line) for line in said})
    assert any("worse than guessing" in line for line in said), "the weights of the tests' model are random"
    assert json.loads((folder / "summary.json").read_text())["watch"] == [line.removeprefix("watch: ") for line in said]
    plain = write_and_run(tmp_path / "plain", model_folder, rows_file, CHANGES | DIVERGING | {"plugins": SHIPPED})
    assert metrics_of(folder) == metrics_of(plain)


def test_an_alarm_ends_the_run_and_the_model_is_no_finished_one(tmp_path, model_folder, rows_file, capsys):
    changes = CHANGES | DIVERGING | {"trainer.watch": {"after": 0, "on_alarm": "stop"}}
    file = builders.write_config(tmp_path, model_folder, rows_file, changes)
    assert main([str(file)]) == 2
    error = capsys.readouterr().err
    folder = tmp_path / "out"
    steps = len(losses_of(folder))
    assert steps < 6
    loss = r"train/loss is [\d.e+]+, worse than guessing|train/loss is [\d.]+ from the start, which is guessing"
    assert re.search(rf"run.yaml:\d+:\d+: trainer.watch.on_alarm: the run was stopped at step \d: ({loss})", error), (
        error
    )
    assert f"\n    the model as it was is in {folder}/checkpoints/step-{steps:06}\n" in error
    assert weights_of(folder / "checkpoints" / f"step-{steps:06}")
    assert not (folder / "model").exists()
    assert "Traceback" not in error


@pytest.mark.parametrize("saving", [{}, {"save_strategy": "steps", "save_steps": 1}])
def test_an_alarm_of_an_evaluation_after_a_saved_step(tmp_path, model_folder, rows_file, capsys, saving):
    changes = CHANGES | {"trainer.watch": {"on_alarm": "stop"}, "trainer.data.val_set_size": 4}
    changes |= {"trainer.arguments.learning_rate": 1e30, "trainer.arguments.logging_steps": 100}
    changes |= {f"trainer.arguments.{name}": value for name, value in saving.items()}
    file = builders.write_config(tmp_path, model_folder, rows_file, changes)
    assert main([str(file)]) == 2
    assert "eval/loss is nan: " in capsys.readouterr().err
    assert weights_of(tmp_path / "out" / "checkpoints" / "step-000002")


def test_a_good_run_hears_nothing(tmp_path, model_folder, rows_file, capsys):
    changes = {"trainer.watch": {"on_alarm": "stop"}, "plugins": PLUGINS}
    folder = write_and_run(tmp_path, model_folder, rows_file, changes)
    assert "watch:" not in capsys.readouterr().out
    assert len(losses_of(folder)) == 2
    assert (folder / "model").is_dir()


def test_what_is_not_watched_cannot_be_ignored(tmp_path, model_folder, rows_file, capsys):
    changes = {"plugins": PLUGINS, "trainer.watch": {"ignore": ["train/los", "x"]}}
    assert main(["check", str(builders.write_config(tmp_path, model_folder, rows_file, changes))]) == 2
    error = capsys.readouterr().err
    assert "trainer.watch.ignore.0: 'train/los' is not watched\n    did you mean 'train/loss'?\n" in error
    assert f"trainer.watch.ignore.1: 'x' is not watched\n    watched are {', '.join(sorted(WATCHED))}\n" in error
