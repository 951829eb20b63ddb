"""The plugin `cut_cross_entropy`: whole runs with it, its metrics, and what it refuses."""

import json

import pytest
import torch

from dumbo.bridge.token_loss import TokenLoss
from dumbo.cli.main import main
from dumbo.kernels.linear_cross_entropy import LossOptions
from tests import builders
from tests.faults.test_out_of_memory import TIGHT
from tests.numerics.training import build_trainer, random_rows, tiny_llama
from tests.run.whole_runs import SHIPPED, losses_of, printed_by, weights_of, write_and_run

PLUGINS = [*SHIPPED, "cut_cross_entropy"]
PLAIN_DESCENT = {"trainer.arguments.optim": "sgd", "trainer.arguments.learning_rate": 0.3}


def assert_same_run(one, other, tolerance=1e-5):
    for path in ("train/loss", "train/grad_norm", "eval/loss"):
        assert losses_of(other, path) == pytest.approx(losses_of(one, path), rel=tolerance), path
    assert losses_of(one)
    before, after = weights_of(one / "model"), weights_of(other / "model")
    assert before.keys() == after.keys()
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=0, atol=tolerance, msg=name)


RUNS = {
    "plain": {"trainer.data.val_set_size": 3},
    "packed": {
        "trainer.data": {"packing": True, "sequence_length": 160, "val_set_size": 3},
        "trainer.arguments.batch_size": 2,
        "trainer.arguments.physical_batch_size": 1,
    },
    "smoothed": {"trainer.arguments.label_smoothing_factor": 0.2, "trainer.data.val_set_size": 3},
}
LONG_RUNS = {
    "joined": {"trainer.data.packing": "joined", "trainer.data.sequence_length": 50},
    "checkpointed": {"trainer.arguments.gradient_checkpointing": True},
    "in half precision": {"trainer.arguments.bf16": True},
    "weights in bfloat16": {"model.dtype": "bfloat16"},
}
TOLERANCES = {"in half precision": 5e-3, "weights in bfloat16": 2e-2}


@pytest.mark.parametrize("name", [*RUNS, *(pytest.param(name, marks=pytest.mark.full) for name in LONG_RUNS)])
def test_a_run_is_the_same_with_it(tmp_path, model_folder, rows_file, capsys, name):
    changes = PLAIN_DESCENT | (RUNS | LONG_RUNS)[name]
    plain = write_and_run(tmp_path / "plain", model_folder, rows_file, changes)
    capsys.readouterr()
    cut = changes | {"plugins": PLUGINS, "model.cut_cross_entropy.tile_tokens": 16}
    left = write_and_run(tmp_path / "cut", model_folder, rows_file, cut)
    assert capsys.readouterr().out.count("loss: logits are made for 16 trained tokens at a time; ") == 1
    assert_same_run(plain, left, TOLERANCES.get(name, 1e-5))


def test_which_kernels_compute_is_said(tmp_path, model_folder, rows_file, capsys):
    write_and_run(tmp_path, model_folder, rows_file, {"plugins": PLUGINS})
    assert "cut_cross_entropy: computed by torch" in capsys.readouterr().out.splitlines()


def test_a_filter_of_small_gradients_leaves_some_out(tmp_path, model_folder, rows_file):
    exact = write_and_run(tmp_path / "exact", model_folder, rows_file, PLAIN_DESCENT | {"plugins": PLUGINS})
    filtered = PLAIN_DESCENT | {"plugins": PLUGINS, "model.cut_cross_entropy.gradient_filter": 0.01}
    found = write_and_run(tmp_path / "filtered", model_folder, rows_file, filtered)
    assert losses_of(found)[0] == losses_of(exact)[0]
    assert losses_of(found, "train/grad_norm") == pytest.approx(losses_of(exact, "train/grad_norm"), rel=0.3)
    assert losses_of(found, "train/grad_norm") != pytest.approx(losses_of(exact, "train/grad_norm"), rel=1e-6)


def test_a_z_loss_is_that_of_the_formula_and_not_in_evaluation(tmp_path, model_folder, rows_file):
    changes = PLAIN_DESCENT | {"trainer.arguments.max_steps": 1, "trainer.data.val_set_size": 3, "plugins": PLUGINS}
    more = changes | {"trainer.arguments.eval_on_start": True}
    plain = write_and_run(tmp_path / "plain", model_folder, rows_file, more)
    found = write_and_run(tmp_path / "z", model_folder, rows_file, more | {"model.cut_cross_entropy.z_loss": 0.01})
    (without,), (with_it,) = losses_of(plain), losses_of(found)
    lse = torch.tensor(512.0).log().item()  # of a random model all tokens are about as likely
    assert with_it - without == pytest.approx(0.01 * lse**2, rel=0.05)
    assert losses_of(found, "eval/loss")[0] == losses_of(plain, "eval/loss")[0]


def by_hand(model, batches):
    """Right predictions, entropies and tokens of some batches."""
    right, entropy, tokens = 0, 0.0, 0
    for batch in batches:
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        kept = batch["labels"][:, 1:] != -100
        logs = logits[kept].double().log_softmax(-1)
        right += int((logs.argmax(-1) == batch["labels"][:, 1:][kept]).sum())
        entropy -= float((logs.exp() * logs).sum())
        tokens += len(logs)
    return right, entropy, tokens


@pytest.mark.parametrize("worthwhile", [0, 1 << 60])
def test_metrics_of_tokens_are_means_over_the_logged_steps(tmp_path, worthwhile):
    model, rows = tiny_llama(), random_rows(24)
    with torch.no_grad():
        model.lm_head.weight.mul_(30)  # a model that is sure of itself, and sometimes right
    loss = TokenLoss(LossOptions(with_metrics=True, tile_rows=7), print, worthwhile_bytes=worthwhile)
    shape = {"batch_size": 6, "physical_batch_size": 2, "max_steps": 4, "logging_steps": 2, "learning_rate": 0.0}
    trained = build_trainer(tmp_path, model, rows, random_rows(5, seed=3), loss, **shape)
    batches = list(trained.trainer.get_train_dataloader())
    trained.trainer.train_to_end()
    groups = [batches[:3], batches[3:6], batches[6:12]]  # the first step is logged for itself; three passes to each
    expected = [by_hand(model, group) for group in groups]
    assert [step for step, _ in trained.metrics.curve("train/entropy")] == [1, 2, 4]
    for path, place in (("train/token_accuracy", 0), ("train/entropy", 1)):
        assert trained.metrics.values(path) == pytest.approx([of[place] / of[2] for of in expected], rel=1e-5)
    assert sum(right for right, _, _ in expected) > 0
    assert not any(name.startswith("eval/token") for _, logged in trained.metrics.logged for name in logged)


def test_a_step_that_is_made_again_in_halves_counts_once(tmp_path, model_folder, rows_file):
    shape = {
        "trainer.arguments.batch_size": 8,
        "trainer.arguments.physical_batch_size": 4,
        "model.cut_cross_entropy": {"token_metrics": True, "tile_tokens": 16},
        "trainer.faults.on_oom": "halve",
        "plugins": [*PLUGINS, "./own.py:TightPlugin"],
    }
    found = {}
    for holds in (8, 2):
        folder = tmp_path / f"holds-{holds}"
        folder.mkdir()
        (folder / "own.py").write_text(TIGHT)
        tight = {"holds": holds, "where": "backward", "how": "", "after": 1}
        (folder / "tight.json").write_text(json.dumps(tight))
        found[holds] = write_and_run(folder, model_folder, rows_file, PLAIN_DESCENT | shape)
    passes = [(tmp_path / f"holds-{holds}" / "passes.txt").read_text().split() for holds in (8, 2)]
    assert set(passes[0]) == {"4"} and "2" in passes[1]
    assert_same_run(found[8], found[2])
    for path in ("train/token_accuracy", "train/entropy"):
        assert losses_of(found[2], path) == pytest.approx(losses_of(found[8], path), rel=1e-5)


KEY = "model.cut_cross_entropy"


@pytest.mark.parametrize(
    ("options", "changes", "line"),
    [
        ({"backend": "apple"}, {}, "backend: 'apple' needs a GPU, and trainer.arguments.use_cpu is set"),
        ({"backend": "liger"}, {}, "backend: 'liger' needs a GPU, and trainer.arguments.use_cpu is set"),
        ({"backend": "apple", "token_metrics": True}, {}, "token_metrics: the backend 'apple' has no such thing"),
        ({"backend": "apple", "z_loss": 1e-4}, {}, "z_loss: the backend 'apple' has no such thing"),
        ({"backend": "liger", "z_loss": 1e-4}, {}, "z_loss: the backend 'liger' has no such thing"),
        ({"backend": "liger", "gradient_filter": 0.01}, {}, "gradient_filter: the backend 'liger' has no such thing"),
        ({"backend": "liger", "tile_tokens": 8}, {}, "tile_tokens: the backend 'liger' has no such thing"),
        ({"backend": "mine"}, {}, "backend: "),
        ({"z_loss": -1.0}, {}, "z_loss: "),
        ({"gradient_filter": 1.0}, {}, "gradient_filter: "),
        ({"tile_tokens": 0}, {}, "tile_tokens: "),
    ],
)
def test_options_that_cannot_be(tmp_path, model_folder, rows_file, capsys, options, changes, line):
    file = builders.write_config(tmp_path, model_folder, rows_file, {"plugins": PLUGINS, KEY: options, **changes})
    said = printed_by(capsys, 2, "check", str(file)).err
    assert f"{KEY}.{line}" in said


def test_a_package_that_is_missing_is_named_with_how_to_install_it(
    tmp_path, model_folder, rows_file, capsys, monkeypatch
):
    from dumbo.plugins.cut_cross_entropy import plugin

    monkeypatch.setattr(plugin, "find_spec", lambda name: None)  # whether or not it is installed here
    for backend, package in (("apple", "cut-cross-entropy"), ("liger", "liger-kernel")):
        changes = {"plugins": PLUGINS, KEY: {"backend": backend}, "trainer.arguments.use_cpu": builders.REMOVE}
        file = builders.write_config(tmp_path / backend, model_folder, rows_file, changes)
        said = printed_by(capsys, 2, "check", str(file)).err
        assert f"{KEY}.backend: '{backend}' needs the package {package}" in said
        extra = "liger" if backend == "liger" else "cut_cross_entropy"
        assert f"pip install 'dumbo-trainer[{extra}]'" in said


def test_smoothing_that_a_backend_has_not(tmp_path, model_folder, rows_file, capsys):
    changes = {"plugins": PLUGINS, KEY: {"backend": "apple"}, "trainer.arguments.label_smoothing_factor": 0.1}
    file = builders.write_config(tmp_path, model_folder, rows_file, changes)
    said = printed_by(capsys, 2, "check", str(file)).err
    assert "trainer.arguments.label_smoothing_factor: the backend 'apple' has no such thing" in said


@pytest.mark.parametrize("option", ["cross_entropy", "fused_linear_cross_entropy"])
def test_one_plugin_computes_the_loss(tmp_path, model_folder, rows_file, capsys, monkeypatch, option):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    changes = {"plugins": [*PLUGINS, "liger"], "model.liger": {option: True}}
    file = builders.write_config(tmp_path, model_folder, rows_file, changes)
    said = printed_by(capsys, 2, "check", str(file)).err
    assert f"model.liger.{option}: another plugin computes the loss, so this would have no effect" in said


def dora(**more):
    peft = {"rank": 2, "use_dora": True, "target_modules": ["lm_head"]}
    return {"model.peft": peft, "plugins": [*SHIPPED, "peft"], **more}


def test_a_head_that_is_not_one_matrix_is_refused_where_the_plugin_is_listed(tmp_path, model_folder, rows_file, capsys):
    changes = dora(plugins=[*PLUGINS, "peft"])
    file = builders.write_config(tmp_path, model_folder, rows_file, changes)
    said = printed_by(capsys, 2, "train", str(file)).err
    assert f"{KEY}: the output head has an adapter that is not a low-rank update" in said
    assert "remove 'cut_cross_entropy' from plugins" in said
    assert main(["train", str(builders.write_config(tmp_path / "without", model_folder, rows_file, dora()))]) == 0
