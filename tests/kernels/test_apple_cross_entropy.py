"""Apple's kernels against ours, by their implementation that runs on a CPU."""

import inspect

import pytest
import torch

from dumbo.bridge.loss_backends import UnfitError, apple_cross_entropy
from dumbo.kernels.linear_cross_entropy import LossOptions, linear_cross_entropy
from dumbo.kernels.linear_logits import LinearLogits, Step

CASES = {
    "plain": ((), False),
    "scaled": ((Step("scale", 0.25),), False),
    "capped": ((Step("scale", 1 / 3.0), Step("tanh"), Step("scale", 3.0)), False),
    "scaled and capped": ((Step("scale", 0.5), Step("scale", 1 / 3.0), Step("tanh"), Step("scale", 3.0)), False),
    "with a bias": ((), True),
}


def knows(name):
    from cut_cross_entropy import linear_cross_entropy as theirs

    return name in inspect.signature(theirs).parameters


def logits_of(steps, has_bias):
    generator = torch.Generator().manual_seed(1)
    shapes = ((13, 16), (37, 16), *([(37,)] if has_bias else []))
    hidden, weight, *bias = (torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)
    return LinearLogits((hidden,), (weight,), bias[0] if bias else None, steps)


def loss_and_gradients(compute, logits, targets, **more):
    total = compute(logits, targets, LossOptions(), **more).total
    return [total.detach(), *torch.autograd.grad(total / 7, logits.tensors)]


@pytest.mark.full
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_are_ours(name):
    pytest.importorskip("cut_cross_entropy")
    logits = logits_of(*CASES[name])
    targets = torch.randint(37, (13,), generator=torch.Generator().manual_seed(2))
    if logits.bias is not None and not knows("bias"):
        with pytest.raises(UnfitError, match="has no bias in the version that is installed"):
            apple_cross_entropy(logits, targets, LossOptions())
        return
    ours = loss_and_gradients(linear_cross_entropy, logits, targets)
    theirs = loss_and_gradients(apple_cross_entropy, logits, targets, impl="torch_compile")
    for mine, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(their, mine, rtol=1e-4, atol=1e-5)


def test_nothing_to_train_gives_zero():
    pytest.importorskip("cut_cross_entropy")
    logits = logits_of((), False).rows(slice(0, 0))
    total, *gradients = loss_and_gradients(apple_cross_entropy, logits, torch.empty(0, dtype=torch.int64))
    assert total == 0
    assert all(not gradient.any() for gradient in gradients)


@pytest.mark.parametrize(
    ("logits", "options", "line"),
    [
        (logits_of((Step("tanh"), Step("tanh")), False), LossOptions(), "what the model does to its logits"),
        (logits_of((Step("scale", 0.5),), True), LossOptions(), "what the model does to its logits"),
        (logits_of((), False), LossOptions(label_smoothing=0.1), "has no label_smoothing_factor"),
        (logits_of((), False), LossOptions(z_loss=0.1), "has no z_loss"),
        (logits_of((), False), LossOptions(with_metrics=True), "has no token_metrics"),
    ],
)
def test_what_it_cannot_do_is_refused(logits, options, line):
    pytest.importorskip("cut_cross_entropy")
    with pytest.raises(UnfitError, match=line):
        apple_cross_entropy(logits, torch.zeros(13, dtype=torch.int64), options)
