"""Tokens that count by what is predicted for them: the loss without logits is that with logits, value and gradients."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from dumbo.kernels.linear_cross_entropy import LossOptions, cross_entropy_of, linear_cross_entropy
from dumbo.kernels.linear_logits import LinearLogits
from dumbo.plugins.dft.weights import probability_weights
from dumbo.plugins.eaft.weights import entropy_weights
from tests.kernels.test_linear_cross_entropy import STEPS, TILES, TOKENS, assert_same, tensors, with_steps


def by_entropy(z, targets, *, alpha=1.0, top_k=20):
    """As the paper of EAFT has it (arXiv 2601.02151, equation 3)."""
    p = z.sort(-1, descending=True).values[:, :top_k].softmax(-1)
    return (-(p * p.log()).sum(-1) / torch.tensor(float(top_k), dtype=z.dtype).log()) ** alpha


def by_probability(z, targets, *, alpha=1.0):
    """As that of DFT (arXiv 2508.05629, equation 9)."""
    return z.softmax(-1)[torch.arange(len(z)), targets] ** alpha


WEIGHTS = {
    "entropies": (entropy_weights(1.0, 20), by_entropy),
    "entropies of few": (entropy_weights(2.0, 3), lambda z, y: by_entropy(z, y, alpha=2.0, top_k=3)),
    "probabilities": (probability_weights(1.0), by_probability),
    "roots of probabilities": (probability_weights(0.5), lambda z, y: by_probability(z, y, alpha=0.5)),
}


def reference(logits, targets, options, said, own=None):
    """The loss as its definition has it, from all logits."""
    z = logits.materialise()
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    s, log_p = options.label_smoothing, z.log_softmax(-1)
    losses = -(1 - s) * log_p[torch.arange(len(z)), targets] - s * log_p.mean(-1)
    losses = losses * said(z, targets).detach() + options.z_loss * z.logsumexp(-1) ** 2
    return (losses if own is None else losses * own).sum()


@pytest.mark.parametrize("rows", TILES)
@pytest.mark.parametrize("name", WEIGHTS)
def test_loss_and_gradients_are_those_of_plain_pytorch(name, rows):
    weigh, said = WEIGHTS[name]
    for steps, smoothing, z_loss, weighted in itertools.product(
        ("plain", "capped"), (0, 0.1), (0, 1e-2), (False, True)
    ):
        logits, targets = tensors(torch.float64)
        logits = with_steps(logits, STEPS[steps])
        own = torch.linspace(0, 2, TOKENS) if weighted else None
        options = LossOptions(smoothing, z_loss, tile_rows=rows, weigh=weigh)
        expected = reference(logits, targets, options, said, own)
        found = linear_cross_entropy(logits, targets, options, own)
        assert_same(found.total, expected, logits.tensors, 1e-12)
        held = cross_entropy_of(logits.materialise(), targets, options, own)
        assert_same(held.total, reference(logits, targets, options, said, own), logits.tensors, 1e-12)
        for each in (found, held):
            assert_close(each.weight, said(logits.materialise(), targets).sum().detach())
            assert each.num_correct is None and not each.weight.requires_grad


@pytest.mark.parametrize("rows", TILES)
@pytest.mark.parametrize("name", ["entropies", "probabilities"])
def test_16_bits_are_as_near_to_the_truth_as_with_logits(name, rows):
    weigh, said = WEIGHTS[name]
    logits, targets = tensors(torch.bfloat16)
    exact = logits.replaced([tensor.detach().double().requires_grad_() for tensor in logits.tensors])
    options, own = LossOptions(0.1, 1e-2, tile_rows=rows, weigh=weigh), torch.linspace(0, 2, TOKENS)
    truth = torch.autograd.grad(reference(exact, targets, options, said, own), exact.tensors)
    ours = torch.autograd.grad(linear_cross_entropy(logits, targets, options, own).total, logits.tensors)
    stock = torch.autograd.grad(reference(logits, targets, options, said, own), logits.tensors)
    for true, mine, theirs in zip(truth, ours, stock, strict=True):
        assert mine.dtype == theirs.dtype
        error, allowed = ((tensor.double() - true).norm() for tensor in (mine, theirs))
        assert error <= 1.1 * allowed


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("rows", TILES)
def test_dft_has_the_gradient_of_a_function_of_probabilities(alpha, rows):
    """Numerical derivatives, too, as nothing in that function is held fast: (1 - p ** alpha) / alpha."""
    logits, targets = tensors(torch.float64)

    def function(hidden, weight, bias):
        p = LinearLogits((hidden,), (weight,), bias).materialise().softmax(-1)[torch.arange(TOKENS), targets]
        return ((1 - p**alpha) / alpha).sum()

    options = LossOptions(tile_rows=rows, weigh=probability_weights(alpha))
    found = torch.autograd.grad(linear_cross_entropy(logits, targets, options).total, logits.tensors)
    wanted = torch.autograd.grad(function(*logits.tensors), logits.tensors)
    for mine, theirs in zip(found, wanted, strict=True):
        assert_close(mine, theirs, rtol=0, atol=1e-12)
    few = [tensor.detach()[:4, :3].requires_grad_() for tensor in (*logits.hidden, *logits.weights)]

    def of_few(hidden, weight):
        p = (hidden @ weight.T).softmax(-1)[:, 0]
        return ((1 - p**alpha) / alpha).sum()

    small = LinearLogits((few[0],), (few[1],))
    first = torch.zeros(4, dtype=torch.int64)
    mine = torch.autograd.grad(linear_cross_entropy(small, first, options).total, few)
    assert torch.autograd.gradcheck(of_few, few)
    for gradient, theirs in zip(mine, torch.autograd.grad(of_few(*few), few), strict=True):
        assert_close(gradient, theirs, rtol=0, atol=1e-12)


def test_entropies_are_shares_of_the_most_that_they_can_be():
    flat = torch.zeros(3, 50, dtype=torch.float64)
    sure = torch.full((3, 50), -torch.inf, dtype=torch.float64)
    sure[:, 7] = 0
    for top_k in (2, 20, 50, 1000):  # of more than there are, all
        weigh = entropy_weights(1.0, top_k)
        assert_close(weigh(flat, flat[:, 0]), torch.ones(3, dtype=torch.float64))
        assert_close(weigh(sure, sure[:, 7]), torch.zeros(3, dtype=torch.float64))


def test_a_token_alone_and_none():
    logits, targets = tensors(torch.float64)
    nowhere = torch.zeros(TOKENS, dtype=torch.bool)
    options = LossOptions(weigh=entropy_weights(1.0, 20))
    found = linear_cross_entropy(logits.rows(nowhere), targets[:0], options)
    assert found.total == 0 and found.weight == 0
    for gradient in torch.autograd.grad(found.total, logits.tensors):
        assert (gradient == 0).all()
