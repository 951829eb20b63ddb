"""The loss of next-token prediction against Transformers' own, PyTorch's in float64, and numerical gradients."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from transformers.trainer_pt_utils import LabelSmoother

from dumbo.losses.token import count_supervised, next_token_cross_entropy
from tests import builders


def logits_and_labels(sequences=3, tokens=7, vocabulary=11, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(sequences, tokens, vocabulary, generator=generator, dtype=torch.float64)
    labels = torch.randint(vocabulary, (sequences, tokens), generator=generator)
    labels[0, :3] = -100
    labels[1, 4:] = -100
    labels[2, ::2] = -100
    return logits.to(dtype), labels


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
def test_it_is_pytorch_s_cross_entropy_of_each_token_given_those_before_it(smoothing):
    logits, labels = logits_and_labels()
    expected = sum(
        F.cross_entropy(logits[i, t - 1], labels[i, t], label_smoothing=smoothing)
        for i in range(3)
        for t in range(1, 7)
        if labels[i, t] != -100
    )
    torch.testing.assert_close(next_token_cross_entropy(logits, labels, smoothing), expected, rtol=1e-12, atol=0)


def test_divided_by_the_count_it_is_the_loss_that_a_model_of_transformers_returns():
    model = builders.build_tiny_model(64)
    ids = torch.randint(64, (3, 9), generator=torch.Generator().manual_seed(1))
    labels = ids.masked_fill(torch.arange(9) < torch.tensor([[2], [5], [1]]), -100)
    with torch.no_grad():
        theirs = model(input_ids=ids, labels=labels)
        ours = next_token_cross_entropy(theirs.logits, labels) / count_supervised(labels)
    torch.testing.assert_close(ours, theirs.loss)


def test_label_smoothing_is_that_of_transformers():
    logits, labels = logits_and_labels()
    theirs = LabelSmoother(epsilon=0.2)({"logits": logits}, labels.clone(), shift_labels=True)
    ours = next_token_cross_entropy(logits, labels, 0.2) / count_supervised(labels)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)  # they sum in float32


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_its_gradient_is_the_numerical_one(smoothing):
    logits, labels = logits_and_labels(tokens=5, vocabulary=6)
    assert torch.autograd.gradcheck(lambda x: next_token_cross_entropy(x, labels, smoothing), logits.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_where_nothing_is_supervised_loss_and_gradient_are_zero(dtype):
    logits, labels = logits_and_labels(dtype=dtype)
    labels[:, 1:] = -100  # the first token is predicted by nothing, so its label does not count
    logits.requires_grad_()
    loss = next_token_cross_entropy(logits, labels, 0.1)
    loss.backward()
    assert loss.item() == 0
    assert count_supervised(labels) == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_ignored_positions_have_no_part_in_loss_and_gradient():
    logits, labels = logits_and_labels()
    changed = logits.clone()
    before_ignored = F.pad(labels[:, 1:], (0, 1), value=-100) == -100
    changed[before_ignored] = torch.nan
    changed.requires_grad_()
    loss = next_token_cross_entropy(changed, labels)
    loss.backward()
    assert loss == next_token_cross_entropy(logits, labels)
    assert not changed.grad[before_ignored].any()
    assert changed.grad[~before_ignored].abs().amax(dim=-1).gt(0).all()


def test_logits_in_bfloat16_are_summed_in_float32():
    logits, labels = logits_and_labels(dtype=torch.bfloat16)
    loss = next_token_cross_entropy(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), next_token_cross_entropy(logits.double(), labels), rtol=1e-6, atol=0)


def test_logits_in_float64_stay_in_float64():
    logits, labels = logits_and_labels()
    assert next_token_cross_entropy(logits, labels).dtype == torch.float64


@pytest.mark.parametrize(
    ("labels", "expected"),
    [([[1, 2, 3]], 2), ([[-100, 2, 3], [-100, -100, 3]], 3), ([[5]], 0), ([[-100, -100]], 0)],
)
def test_tokens_that_something_predicts_are_counted(labels, expected):
    count = count_supervised(torch.tensor(labels))
    assert (count.item(), count.dtype, count.shape) == (expected, torch.int64, torch.Size([]))
