"""The plugins `eaft` and `dft`: whole runs with them, by hand and beside others, and what is refused."""

import json

import pytest
import torch

from dumbo.bridge.token_loss import TokenLoss
from dumbo.kernels.linear_cross_entropy import LossOptions
from dumbo.plugins.dft.weights import probability_weights
from dumbo.plugins.eaft.weights import entropy_weights
from tests import builders
from tests.faults.test_out_of_memory import TIGHT
from tests.kernels.test_token_weights import by_entropy, by_probability
from tests.numerics.training import build_trainer, farthest_weight, random_rows, tiny_llama
from tests.run.whole_runs import SHIPPED, losses_of, printed_by, weights_of, write_and_run

DESCENT = {"trainer.arguments.optim": "sgd", "trainer.arguments.learning_rate": 0.3, "trainer.data.val_set_size": 3}
KINDS = {"eaft": (entropy_weights(1.0, 20), by_entropy), "dft": (probability_weights(1.0), by_probability)}
SHAPE = {"batch_size": 8, "physical_batch_size": 2, "max_steps": 3, "optim": "sgd", "learning_rate": 0.3}


def sure_model():
    """Of a random model all tokens are about as likely: this one has opinions."""
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    return model


def weighing(name, *, smoothing=0.0, worthwhile=0):
    loss = TokenLoss(LossOptions(smoothing, tile_rows=7), print, worthwhile_bytes=worthwhile)
    loss.weigh(KINDS[name][0])
    return loss


def by_hand(model, batches, said, smoothing):
    """A step in plain PyTorch: its loss, which has gradients, and the mean weight of its tokens."""
    total, weights, tokens = 0.0, 0.0, 0
    for batch in batches:
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        kept = batch["labels"][:, 1:] != -100
        z, y = logits[kept], batch["labels"][:, 1:][kept]
        w = said(z, y).detach()
        losses = torch.nn.functional.cross_entropy(z, y, reduction="none", label_smoothing=smoothing)
        total, weights, tokens = total + (w * losses).sum(), weights + float(w.sum()), tokens + len(y)
    return total / tokens, weights / tokens


@pytest.mark.parametrize("worthwhile", [0, 1 << 60], ids=["without logits", "with logits"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("name", KINDS)
def test_a_training_is_that_of_plain_pytorch(tmp_path, name, smoothing, worthwhile):
    model, rows = sure_model(), random_rows(24)
    loss = weighing(name, smoothing=smoothing, worthwhile=worthwhile)
    trained = build_trainer(tmp_path, model, rows, random_rows(5, seed=3), loss, **SHAPE, max_grad_norm=0)
    batches = list(trained.trainer.get_train_dataloader())
    trained.trainer.train_to_end()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    expected = []
    for step in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 0.3 * (3 - step) / 3
        mean, weight = by_hand(model, batches[4 * step : 4 * step + 4], KINDS[name][1], smoothing)
        mean.backward()
        optimizer.step()
        optimizer.zero_grad()
        expected.append((mean.item(), weight))
    assert trained.metrics.values("train/loss") == pytest.approx([mean for mean, _ in expected], rel=1e-4)
    assert trained.metrics.values("train/token_weight") == pytest.approx([weight for _, weight in expected], rel=1e-4)
    assert 1e-3 < min(weight for _, weight in expected) < 0.9
    assert farthest_weight(trained.model, model) < 1e-4
    assert not any("token_accuracy" in name for _, logged in trained.metrics.logged for name in logged)


def test_a_step_that_is_made_again_counts_once(tmp_path):
    """What is counted of a pass that failed is forgotten with it."""
    loss = weighing("dft")
    model, batch = sure_model(), {"input_ids": torch.arange(8)[None], "labels": torch.arange(8)[None]}
    loss(model, batch, torch.tensor(7))
    loss.begin_step()
    before = loss.counts.clone()
    loss(model, {name: value.flip(1) for name, value in batch.items()}, torch.tensor(7))
    assert not torch.equal(loss.counts, before)
    loss.forget_step()
    assert torch.equal(loss.counts, before)


RUNS = {
    "accumulated": {"trainer.arguments.batch_size": 8, "trainer.arguments.physical_batch_size": 2},
    "without logits, with metrics": {
        "model.cut_cross_entropy": {"tile_tokens": 16, "token_metrics": True},
        "plugins": [*SHIPPED, "cut_cross_entropy"],
    },
}


def test_a_run_is_the_same_however_it_is_made(tmp_path, model_folder, rows_file, capsys):
    whole = {"trainer.arguments.batch_size": 8, "trainer.arguments.physical_batch_size": 8}
    changes = DESCENT | whole | {"plugins": [*SHIPPED, "eaft"], "trainer.arguments.max_steps": 2}
    plain = write_and_run(tmp_path / "plain", model_folder, rows_file, changes)
    weights = losses_of(plain, "train/token_weight")
    assert len(weights) == 2 and all(0.9 < weight <= 1 for weight in weights), "a random model is unsure of everything"
    for name in ("accumulated", "without logits, with metrics"):
        more = RUNS[name]
        listed = [*more.get("plugins", SHIPPED), "eaft"]
        folder = write_and_run(
            tmp_path / name.split()[0], model_folder, rows_file, changes | more | {"plugins": listed}
        )
        for path in ("train/loss", "train/token_weight", "eval/loss"):
            assert losses_of(folder, path) == pytest.approx(losses_of(plain, path), rel=1e-5), (name, path)
        assert bool(losses_of(folder, "train/token_accuracy")) == ("metrics" in name)
        after = weights_of(folder / "model")
        for key, value in weights_of(plain / "model").items():
            torch.testing.assert_close(after[key], value, rtol=0, atol=1e-5, msg=key)


def test_packed_and_unpacked_steps_are_the_same(tmp_path, model_folder, rows_file):
    """All rows in one step, packed or padded; evaluation is plain cross entropy with the plugin and without."""
    one = DESCENT | {"trainer.arguments.eval_on_start": True, "trainer.arguments.max_steps": 1}
    padded = one | {"trainer.arguments.batch_size": 64, "trainer.arguments.physical_batch_size": 8}
    packed = one | {
        "trainer.data": {"packing": True, "sequence_length": 600, "val_set_size": 3},
        "trainer.arguments.batch_size": 32,
        "trainer.arguments.physical_batch_size": 1,
    }
    runs = {
        (way, listed): write_and_run(
            tmp_path / f"{way}-{listed}", model_folder, rows_file, changes | {"plugins": [*SHIPPED, *listed.split()]}
        )
        for way, changes, listed in (("padded", padded, "dft"), ("packed", packed, "dft"), ("padded", padded, ""))
    }
    mine, other, plain = runs["padded", "dft"], runs["packed", "dft"], runs["padded", ""]
    for path in ("train/loss", "train/token_weight", "eval/loss"):
        assert losses_of(other, path) == pytest.approx(losses_of(mine, path), rel=1e-5), path
    assert losses_of(mine, "eval/loss")[0] == losses_of(plain, "eval/loss")[0]
    assert losses_of(mine)[0] < 0.1 * losses_of(plain)[0], "a random model finds nothing likely"


def test_a_run_that_makes_a_step_again_in_halves_logs_the_same_weights(tmp_path, rows_file, tokenizer):
    """By a model with opinions, so that a pass that was counted twice would show."""
    model = builders.save_tiny_model(tmp_path / "model", tokenizer, initializer_range=0.5)
    shape = {
        "trainer.arguments.batch_size": 8,
        "trainer.arguments.physical_batch_size": 4,
        "trainer.arguments.max_steps": 1,
        "trainer.faults.on_oom": "halve",
        "plugins": [*SHIPPED, "dft", "./own.py:TightPlugin"],
    }
    found = {}
    for holds in (8, 2):
        folder = tmp_path / f"holds-{holds}"
        folder.mkdir()
        (folder / "own.py").write_text(TIGHT)
        (folder / "tight.json").write_text(json.dumps({"holds": holds, "where": "backward", "how": "", "after": 1}))
        found[holds] = write_and_run(folder, model, rows_file, DESCENT | shape)
    assert "2" in (tmp_path / "holds-2" / "passes.txt").read_text().split()
    weights = losses_of(found[8], "train/token_weight")
    assert losses_of(found[2], "train/token_weight") == pytest.approx(weights, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"plugins": [*SHIPPED, "eaft", "dft"]}, "build_token_weights"),
        ({"trainer.eaft.alpha": 0, "plugins": [*SHIPPED, "eaft"]}, "trainer.eaft.alpha"),
        ({"trainer.eaft.top_k": 1, "plugins": [*SHIPPED, "eaft"]}, "trainer.eaft.top_k"),
        ({"trainer.dft.alpha": -1.0, "plugins": [*SHIPPED, "dft"]}, "trainer.dft.alpha"),
        ({"trainer.dft.alpha": 1.0}, "add 'dft' under plugins:"),
    ],
)
def test_what_is_refused(tmp_path, model_folder, rows_file, capsys, changes, line):
    file = builders.write_config(tmp_path, model_folder, rows_file, changes)
    assert line in printed_by(capsys, 2, "check", str(file)).err
