"""A compiled model without logits: its layers are compiled once, and the loss is that of the model as it is."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

from dumbo.bridge.token_loss import TokenLoss
from dumbo.kernels.linear_cross_entropy import LossOptions
from dumbo.losses.token import next_token_cross_entropy
from tests import builders
from tests.numerics.training import VOCABULARY, farthest_weight, random_rows, train

ARGUMENTS = {"batch_size": 4, "physical_batch_size": 4, "max_steps": 2, "optim": "sgd", "learning_rate": 0.3}


def a_batch(seed):
    ids = torch.randint(4, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def without_labels(batch):
    return {name: value for name, value in batch.items() if name != "labels"}


def without_logits(said):
    return TokenLoss(LossOptions(tile_rows=16), said.append, worthwhile_bytes=0)


@pytest.mark.full
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_layers_are_compiled_and_the_training_is_the_same(tmp_path, backend):
    torch.compiler.reset()
    counters.clear()
    rows, said, model = random_rows(8), [], builders.build_tiny_model(VOCABULARY, num_hidden_layers=1)
    plain = train(tmp_path / "plain", model, rows, **ARGUMENTS)
    compiled = {"torch_compile": True, "torch_compile_backend": backend}
    left = train(tmp_path / "left", model, rows, loss=without_logits(said), **(ARGUMENTS | compiled))
    assert len(said) == 1 and said[0].startswith("loss: logits are made for "), said
    assert left.metrics.values("train/loss") == pytest.approx(plain.metrics.values("train/loss"), rel=1e-5)
    assert farthest_weight(left.model, plain.model) < 1e-5
    assert counters["stats"]["calls_captured"] > 50, "the decoder's layers"


@pytest.mark.full
@pytest.mark.parametrize(
    "overrides",
    [{"config_type": "gemma2", "final_logit_softcapping": 1.5, "head_dim": 8}]
    + [{"config_type": "granite", "logits_scaling": 3.0}],
    ids=lambda overrides: overrides["config_type"],
)
def test_what_a_compiled_model_does_to_its_logits_is_noted(overrides):
    torch.compiler.reset()
    counter, said = CompileCounter(), []
    model = builders.build_tiny_model(VOCABULARY, num_hidden_layers=1, **overrides)
    batch = a_batch(0)
    with torch.no_grad():
        expected = next_token_cross_entropy(model(**without_labels(batch)).logits, batch["labels"]) / 22
    compiled = torch.compile(model, backend=counter)
    loss = without_logits(said)(compiled, batch, torch.tensor(22))
    torch.testing.assert_close(loss.detach(), expected)
    loss.backward()
    assert len(said) == 1 and said[0].startswith("loss: logits are made for "), said
    assert counter.op_count > 50


def test_nothing_is_compiled_again_at_the_next_steps():
    torch.compiler.reset()
    counter, model = CompileCounter(), builders.build_tiny_model(VOCABULARY, num_hidden_layers=1)
    compiled = torch.compile(model, backend=counter)
    loss = without_logits([])
    frames = []
    for seed in range(3):
        loss(compiled, a_batch(seed), torch.tensor(22)).backward()
        frames.append((counter.frame_count, counter.op_count))
    assert frames[0][0] >= 1 and frames[0][1] > 50, "the decoder's layers"
    assert frames[1:] == frames[:1] * 2
