"""Training some weights only, and some of them faster than others: what is asked for is what happens."""

import json

import pytest
import torch

from dumbo.bridge.learning_rates import scale_learning_rates
from dumbo.cli.main import main
from dumbo.errors import ConfigError
from dumbo.job import RateFactor
from tests import builders
from tests.faults.stopping import assert_same_run, stop_by, write_stoppable
from tests.run.whole_runs import SHIPPED, losses_of, weights_of, write_and_run

FAST = {"trainer.arguments.max_steps": 3, "trainer.arguments.learning_rate": 0.01}
OPTIMIZER = '''
from dumbo.plugin_loader import {bases}


class {name}Plugin({bases}):
    """Makes an optimizer, or asks for other rates."""

    name = "{lower}"

    def build_optimizer(self, model, config):
        import torch

        return torch.optim.SGD(model.parameters(), lr=config.trainer.arguments.learning_rate)
'''
RATES = '''
from dumbo.plugin_loader import LearningRatePlugin


class RatesPlugin(LearningRatePlugin):
    """Stops the norms."""

    name = "rates"

    def learning_rate_factors(self, config):
        return {"%s": 0.0}
'''


def refusal(folder, model, rows, changes, capsys):
    file = builders.write_config(folder, model, rows, changes)
    assert main(["train", str(file)]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def changed(out, model):
    before, after = weights_of(model), weights_of(out / "model")
    return {name for name in after if not torch.equal(before[name], after[name])}


def test_only_weights_that_are_named_are_trained(tmp_path, model_folder, rows_file, capsys):
    patterns = ["layers.1.mlp", r"^model\.norm"]
    out = write_and_run(tmp_path, model_folder, rows_file, {**FAST, "model.unfrozen_parameters": patterns})
    mlp = {f"model.layers.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
    assert changed(out, model_folder) == {*mlp, "model.norm.weight"}
    said = capsys.readouterr().out
    assert "unfrozen_parameters: 6,176 of 51,360 parameters" in said.replace("\n", " ")
    assert "in 4 of 21 weights are trained: model.layers.1.mlp.gate_proj.weight" in said
    named = json.loads((out / "summary.json").read_text())["trained_parameters"]
    assert {"name": "model.norm.weight", "weights": 1, "parameters": 32} in named
    assert losses_of(out)[-1] < losses_of(out)[0]


@pytest.mark.parametrize("end", ["lm_head", "embed_tokens"])
def test_a_tied_weight_goes_by_either_name(tmp_path, rows_file, end):
    folder = builders.save_tiny_model(tmp_path / "base", tie_word_embeddings=True)
    out = write_and_run(tmp_path, folder, rows_file, {**FAST, "model.unfrozen_parameters": [f"{end}.weight$"]})
    assert changed(out, folder) == {"model.embed_tokens.weight"}


@pytest.mark.parametrize(
    ("patterns", "lines"),
    [
        (
            ["layers.7.mlp"],
            ["model.unfrozen_parameters.0: 'layers.7.mlp' is in the name of no weight", "nearest are: "],
        ),
        (["norm", "("], ["model.unfrozen_parameters.1: '(' is not a regular expression"]),
        ([r"^model.embed_tokens.weight$[:320]"], ["a range of rows cannot be trained by itself"]),
    ],
)
def test_patterns_that_name_nothing(tmp_path, model_folder, rows_file, patterns, lines, capsys):
    said = refusal(tmp_path, model_folder, rows_file, {"model.unfrozen_parameters": patterns}, capsys)
    for line in lines:
        assert line in said


def test_beside_an_adapter_it_has_no_effect(tmp_path, model_folder, rows_file, capsys):
    changes = {"model.unfrozen_parameters": ["norm"], "model.peft": {}, "plugins": [*SHIPPED, "peft"]}
    said = refusal(tmp_path, model_folder, rows_file, changes, capsys)
    assert "model.unfrozen_parameters: has no effect with 'peft' listed" in said
    assert "write model.peft.modules_to_save" in said


def test_weights_at_factor_zero_stay_and_the_base_rate_is_logged(tmp_path, model_folder, rows_file):
    factors = {"embed_tokens|lm_head": 0.0, "layers.0": 0.0, "layers.1.mlp": 2.0}
    out = write_and_run(tmp_path, model_folder, rows_file, {**FAST, "trainer.arguments.learning_rate_factors": factors})
    names = changed(out, model_folder)
    assert names
    assert all("layers.1" in name or name == "model.norm.weight" for name in names)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["train/learning_rate"] == pytest.approx(0.01)


def test_groups_keep_weight_decay_and_factors_are_multiplied():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    weights = [parameter for name, parameter in model.named_parameters() if "weight" in name]
    biases = [parameter for name, parameter in model.named_parameters() if "bias" in name]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0)
    scale_learning_rates(optimizer, model, [RateFactor("1.weight", 0.5), RateFactor("^1", 0.5, "other")])
    found = {(group["lr"], group["weight_decay"], len(group["params"])) for group in optimizer.param_groups}
    assert found == {(1.0, 0.1, 1), (0.25, 0.1, 1), (1.0, 0.0, 1), (0.5, 0.0, 1)}
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.step()
    schedule.step()
    assert schedule.get_last_lr()[0] == 0.5
    assert sorted(schedule.get_last_lr()) == [0.125, 0.25, 0.5, 0.5]


def test_an_optimizer_without_a_rate_is_refused():
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    optimizer.param_groups[0]["lr"] = None
    with pytest.raises(ConfigError, match="no learning rate that could be multiplied"):
        scale_learning_rates(optimizer, model, [RateFactor("weight", 0.5)])


def test_factors_that_fit_nothing(tmp_path, model_folder, rows_file, capsys):
    key = "trainer.arguments.learning_rate_factors"
    said = refusal(tmp_path / "a", model_folder, rows_file, {key: {"embed_token5": 0.1}}, capsys)
    assert f"{key}: 'embed_token5' fits nothing that is trained" in said
    assert "nearest are: model.embed_tokens.weight" in said
    said = refusal(tmp_path / "b", model_folder, rows_file, {key: {"(": 0.1}}, capsys)
    assert f"{key}: '(' is not a regular expression" in said
    said = refusal(tmp_path / "c", model_folder, rows_file, {key: {"norm": -1.0}}, capsys)
    assert f"{key}.norm: " in said


def test_a_plugin_gives_rates_and_not_beside_another_optimizer(tmp_path, model_folder, rows_file, capsys):
    (tmp_path / "rates.py").write_text(RATES % "norm")
    (tmp_path / "none.py").write_text(RATES % "nothing like it")
    (tmp_path / "maker.py").write_text(OPTIMIZER.format(bases="OptimizerPlugin", name="Maker", lower="maker"))
    plugins = [*SHIPPED, "./rates.py:RatesPlugin"]
    out = write_and_run(tmp_path, model_folder, rows_file, {**FAST, "plugins": plugins})
    assert not any("norm" in name for name in changed(out, model_folder))
    elsewhere = {**FAST, "trainer.output_dir": str(tmp_path / "other")}
    said = refusal(
        tmp_path, model_folder, rows_file, {**elsewhere, "plugins": [*SHIPPED, "./none.py:RatesPlugin"]}, capsys
    )
    assert "plugin 'rates': learning_rate_factors: 'nothing like it' fits nothing that is trained" in said
    both = {**elsewhere, "plugins": [*plugins, "./maker.py:MakerPlugin"]}
    said = refusal(tmp_path, model_folder, rows_file, both, capsys)
    assert "'rates' gives some weights another learning rate, and 'maker' makes the optimizer" in said
    alone = {
        **elsewhere,
        "plugins": [*SHIPPED, "./maker.py:MakerPlugin"],
        "trainer.arguments.learning_rate_factors": {"norm": 0.5},
    }
    said = refusal(tmp_path, model_folder, rows_file, alone, capsys)
    assert "trainer.arguments.learning_rate_factors: nothing uses this: the plugin 'maker'" in said


def test_a_run_of_some_weights_goes_on(tmp_path, model_folder, capfd):
    rows = builders.write_rows(tmp_path / "rows.jsonl", builders.alpaca_rows(26))
    changes = {
        "model.unfrozen_parameters": ["layers.1", "norm"],
        "trainer.arguments.learning_rate_factors": {"mlp": 4.0, "norm": 0.5},
        "trainer.arguments.weight_decay": 0.1,
    }
    files = [write_stoppable(tmp_path / where, model_folder, rows, dict(changes)) for where in "ab"]
    assert main(["train", str(files[0])]) == 0
    with stop_by("SIGTERM", 7):
        assert main(["train", str(files[1])]) == 75
    capfd.readouterr()
    assert main(["train", str(files[1]), "--resume", "trainer.arguments.learning_rate_factors={mlp: 2.0}"]) == 2
    assert "trainer.arguments.learning_rate_factors" in capfd.readouterr().err
    assert main(["train", str(files[1]), "--resume"]) == 0
    assert_same_run(tmp_path / "b" / "out", tmp_path / "a" / "out")
