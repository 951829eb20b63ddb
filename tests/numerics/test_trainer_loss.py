"""The trainer's loss, gradients and evaluation against a plain PyTorch loop, for every split into batches."""

import math

import pytest
import torch

from dumbo.losses.token import next_token_cross_entropy
from tests import builders
from tests.numerics.training import (
    VOCABULARY,
    build_trainer,
    farthest_weight,
    loss_of_rows,
    random_rows,
    tiny_llama,
    train,
    train_by_hand,
)

ROWS = 19  # with a batch of 8, the last step of an epoch has 3 rows


@pytest.fixture(scope="module")
def rows():
    return random_rows(ROWS)


@pytest.fixture(scope="module")
def held_out():
    return random_rows(7, seed=9)


@pytest.fixture(scope="module")
def model():
    return tiny_llama()


@pytest.fixture(scope="module")
def by_hand(model, rows):
    return train_by_hand(model, rows, batch_size=8, epochs=2)


def batch_losses(model, rows):
    total, count = loss_of_rows(model, rows)
    return (total / count).item()


@pytest.mark.parametrize("physical", [1, 2, 4, 8])
def test_any_split_of_a_batch_trains_as_a_plain_loop_does(tmp_path, model, rows, by_hand, physical):
    expected_model, expected_losses = by_hand
    trained = train(tmp_path, model, rows, batch_size=8, physical_batch_size=physical, num_train_epochs=2.0)
    assert [step for step, _ in trained.metrics.curve("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert trained.metrics.values("train/loss") == pytest.approx(expected_losses, rel=1e-5)
    assert farthest_weight(trained.model, expected_model) < 1e-5
    assert farthest_weight(trained.model, model) > 1e-3, "something was learned"


def test_a_long_row_weighs_by_its_tokens(tmp_path, model):
    rows = random_rows(4)
    counts = [int((rows[index]["labels"] != -100).sum()) for index in range(4)]
    assert max(counts) > 5 * min(counts), "rows of very different lengths"
    trained = train(tmp_path, model, rows, batch_size=4, physical_batch_size=1, max_steps=1)
    with torch.no_grad():
        expected = batch_losses(model, [rows[index] for index in range(4)])
        mean_of_means = sum(batch_losses(model, [rows[index]]) for index in range(4)) / 4
    assert trained.metrics.values("train/loss") == pytest.approx([expected], rel=1e-6)
    assert abs(mean_of_means - expected) > 1e-3 * expected


def test_losses_between_two_lines_of_the_log_are_averaged_over_the_steps(tmp_path, model, rows, by_hand):
    trained = train(tmp_path, model, rows, batch_size=8, num_train_epochs=2.0, logging_steps=4)
    _, losses = by_hand
    expected = [(1, losses[0]), (4, sum(losses[1:4]) / 3), (6, sum(losses[4:]) / 2)]
    logged = trained.metrics.curve("train/loss")
    assert [step for step, _ in logged] == [step for step, _ in expected]
    assert [loss for _, loss in logged] == pytest.approx([loss for _, loss in expected], rel=1e-5)


def test_the_logged_learning_rate_and_epoch_are_those_of_the_step(tmp_path, model, rows):
    trained = train(tmp_path, model, rows, batch_size=8, num_train_epochs=2.0, learning_rate=6e-3)
    rates = trained.metrics.values("train/learning_rate")
    assert rates == pytest.approx([6e-3, 5e-3, 4e-3, 3e-3, 2e-3, 1e-3])
    assert trained.metrics.values("train/epoch") == pytest.approx([1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])


def test_half_an_epoch_is_half_of_the_steps(tmp_path, model, rows):
    trained = train(tmp_path, model, rows, batch_size=2, num_train_epochs=0.5)
    assert [step for step, _ in trained.metrics.curve("train/loss")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("size", [1, 2, 4, 16])
def test_evaluation_is_the_mean_over_tokens_for_every_batch_size(tmp_path, model, rows, held_out, size):
    trained = build_trainer(tmp_path, model, rows, held_out, per_device_eval_batch_size=size)
    metrics = trained.trainer.evaluate()
    with torch.no_grad():
        expected = batch_losses(model.eval(), [held_out[index] for index in range(len(held_out))])
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-6)
    assert trained.metrics.values("eval/loss") == [metrics["eval_loss"]]


def test_evaluation_leaves_dropout_out_and_the_model_in_training(tmp_path, rows, held_out):
    model = builders.build_tiny_model(VOCABULARY, attention_dropout=0.5)
    trained = build_trainer(tmp_path, model, rows, held_out)
    assert trained.trainer.evaluate() == trained.trainer.evaluate()
    assert trained.model.training


def test_evaluation_in_training_changes_nothing_about_it(tmp_path, model, rows, held_out, by_hand):
    trained = train(
        tmp_path, model, rows, held_out, batch_size=8, num_train_epochs=2.0, eval_strategy="steps", eval_steps=2
    )
    assert [step for step, _ in trained.metrics.curve("eval/loss")] == [2, 4, 6]
    assert trained.metrics.values("train/loss") == pytest.approx(by_hand[1], rel=1e-5)


def test_label_smoothing_acts_in_training_and_not_in_evaluation(tmp_path, model, rows, held_out):
    smoothed = build_trainer(tmp_path, model, rows, held_out, label_smoothing_factor=0.3, batch_size=8, max_steps=1)
    plain = build_trainer(tmp_path, model, rows, held_out, batch_size=8, max_steps=1)
    assert smoothed.trainer.evaluate() == plain.trainer.evaluate()
    smoothed.trainer.train_to_end()
    plain.trainer.train_to_end()
    (with_smoothing,), (without,) = (run.metrics.values("train/loss") for run in (smoothed, plain))
    assert abs(with_smoothing - without) > 1e-3 * without


def test_gradients_are_clipped_to_their_norm_over_the_whole_batch(tmp_path, model, rows):
    sgd = {"optim": "sgd", "learning_rate": 1.0, "batch_size": 8, "max_steps": 1, "lr_scheduler_type": "constant"}
    for physical in (2, 8):
        free = train(tmp_path, model, rows, **sgd, physical_batch_size=physical, max_grad_norm=0.0)
        clipped = train(tmp_path, model, rows, **sgd, physical_batch_size=physical, max_grad_norm=0.01)
        lengths = []
        for trained in (free, clipped):
            changes = [
                (now - before).flatten()
                for now, before in zip(trained.model.parameters(), model.parameters(), strict=True)
            ]
            lengths.append(torch.cat(changes).norm().item())
        (norm,) = free.metrics.values("train/grad_norm")
        assert clipped.metrics.values("train/grad_norm") == pytest.approx([norm]), "the norm before clipping is logged"
        assert norm > 0.1
        assert lengths == pytest.approx([norm, 0.01], rel=1e-3)


def test_a_loss_that_is_not_a_number_is_logged_as_it_is(tmp_path, model, rows):
    steps = iter(range(3))

    def loss(module, batch, num_items):
        total = next_token_cross_entropy(module(input_ids=batch["input_ids"]).logits, batch["labels"])
        return total / num_items * (math.nan if next(steps) == 1 else 1.0)

    trained = train(
        tmp_path, model, rows, loss=loss, batch_size=8, physical_batch_size=8, max_steps=3, learning_rate=0.0
    )
    first, second, third = trained.metrics.values("train/loss")
    assert math.isfinite(first)
    assert math.isnan(second)
    assert math.isnan(trained.metrics.values("train/grad_norm")[1])
    assert math.isfinite(third), "the step was left out"


@pytest.fixture(scope="module", params=["mixtral", "qwen3_moe"])
def mixture(request):
    experts = {"num_local_experts": 4} if request.param == "mixtral" else {"num_experts": 4}
    sizes = {"moe_intermediate_size": 16} if request.param == "qwen3_moe" else {}
    return builders.build_tiny_model(
        VOCABULARY,
        config_type=request.param,
        num_experts_per_tok=2,
        output_router_logits=True,
        router_aux_loss_coef=0.5,
        **experts,
        **sizes,
    )


def doubled_loss(module, batch, num_items):
    logits = module(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return 2 * next_token_cross_entropy(logits, batch["labels"]) / num_items


@pytest.mark.parametrize(("loss", "factor"), [(None, 1), (doubled_loss, 2)])
def test_the_auxiliary_loss_of_experts_is_added_once_under_any_loss(tmp_path, mixture, loss, factor):
    rows = random_rows(4)
    for physical in (4, 2):
        trained = build_trainer(
            tmp_path,
            mixture,
            rows,
            loss=loss,
            batch_size=4,
            physical_batch_size=physical,
            max_steps=1,
            optim="sgd",
            learning_rate=1.0,
            max_grad_norm=0.0,
        )
        batches = list(trained.trainer.get_train_dataloader())
        assert len(batches) == 4 // physical
        expected_model = mixture.train()
        expected_model.zero_grad()
        outputs = [expected_model(input_ids=b["input_ids"], attention_mask=b["attention_mask"]) for b in batches]
        count = sum((b["labels"][:, 1:] != -100).sum() for b in batches)
        total = sum(next_token_cross_entropy(out.logits, b["labels"]) for out, b in zip(outputs, batches, strict=True))
        auxiliary = 0.5 * sum(out.aux_loss for out in outputs) / len(outputs)
        expected = factor * total / count + auxiliary
        expected.backward()
        assert auxiliary.item() > 0.1
        trained.trainer.train_to_end()
        assert trained.metrics.values("train/loss") == pytest.approx([expected.item()], rel=1e-5)
        moved = dict(trained.model.named_parameters())
        for name, weight in mixture.named_parameters():
            torch.testing.assert_close(moved[name], weight - weight.grad, rtol=0, atol=1e-5, msg=name)


def test_the_auxiliary_loss_has_no_part_in_evaluation(tmp_path, mixture, rows, held_out):
    trained = build_trainer(tmp_path, mixture, rows, held_out, per_device_eval_batch_size=1)
    with torch.no_grad():
        expected = batch_losses(mixture.eval(), [held_out[index] for index in range(len(held_out))])
    assert trained.trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
