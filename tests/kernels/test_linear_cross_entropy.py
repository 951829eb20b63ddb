"""The loss without logits is that with logits: value and gradients, for every tile, step, term and type."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from dumbo.kernels.linear_cross_entropy import (
    LossOptions,
    cross_entropy_of,
    linear_cross_entropy,
    select_log_probabilities,
)
from dumbo.kernels.linear_logits import LinearLogits, Step, tile_rows

TOKENS, VOCABULARY, WIDTH = 50, 61, 16
CAP = (Step("scale", 1 / 3), Step("tanh"), Step("scale", 3.0))
STEPS = {
    "plain": (),
    "scaled": (Step("scale", 0.3),),
    "capped": CAP,
    "cast and capped": (Step("cast", torch.float32), *CAP, Step("scale", 0.5)),
    "tanh alone": (Step("tanh"),),
}
TILES = (1, 7, TOKENS)


def tensors(dtype, *, bias=True, seed=0, updates=()):
    """Hidden states, weights and perhaps a bias; `updates` are inner widths of low-rank updates."""
    draw = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_()

    widths = (WIDTH, *updates)
    hidden = tuple(random(TOKENS, width) for width in widths)
    weights = tuple(random(VOCABULARY, width) for width in widths)
    targets = torch.randint(VOCABULARY, (TOKENS,), generator=draw)
    return LinearLogits(hidden, weights, random(VOCABULARY) if bias else None), targets


def with_steps(logits, steps):
    return LinearLogits(logits.hidden, logits.weights, logits.bias, steps, logits.dtype)


def reference(logits, targets, options, weights=None, precision=torch.float32):
    """The loss as its definition has it, from all logits."""
    z = logits.materialise()
    z = z.to(torch.promote_types(z.dtype, precision))
    s = options.label_smoothing
    log_p = z.log_softmax(-1)
    losses = -(1 - s) * log_p[torch.arange(len(z)), targets] - s * log_p.mean(-1)
    losses = losses + options.z_loss * z.exp().sum(-1).log() ** 2
    return (losses if weights is None else losses * weights).sum()


def assert_same(found, expected, tensors, tolerance):
    ours = torch.autograd.grad(found * 2.5, tensors)
    theirs = torch.autograd.grad(expected * 2.5, tensors)
    assert_close(found, expected, rtol=tolerance, atol=0, check_dtype=False)
    for mine, their in zip(ours, theirs, strict=True):
        assert mine.dtype == their.dtype
        assert_close(mine, their, rtol=0, atol=tolerance * float(their.abs().max()))


@pytest.mark.parametrize("rows", TILES)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 3e-6)])
def test_loss_and_gradients_are_those_with_logits(dtype, tolerance, steps, rows):
    is_cast = any(step.kind == "cast" for step in STEPS[steps])
    for bias, smoothing, z_loss, weighted in itertools.product([False, True], [0, 0.1], [0, 1e-2], [False, True]):
        logits, targets = tensors(dtype, bias=bias)
        logits = with_steps(logits, STEPS[steps])
        weights = torch.linspace(0, 2, TOKENS) if weighted else None
        options = LossOptions(smoothing, z_loss, tile_rows=rows)
        found = linear_cross_entropy(logits, targets, options, weights).total
        expected = reference(logits, targets, options, weights)
        assert_same(found, expected, logits.tensors, 3e-6 if is_cast else tolerance)


@pytest.mark.parametrize("rows", TILES)
def test_pytorchs_own_loss(rows):
    logits, targets = tensors(torch.float64)
    found = linear_cross_entropy(logits, targets, LossOptions(0.2, tile_rows=rows)).total
    expected = F.cross_entropy(logits.materialise(), targets, reduction="sum", label_smoothing=0.2)
    assert_same(found, expected, logits.tensors, 1e-12)


@pytest.mark.parametrize("rows", TILES)
def test_a_head_with_low_rank_updates(rows):
    logits, targets = tensors(torch.float64, updates=(2, 3))
    logits = with_steps(logits, CAP)
    assert_same(
        linear_cross_entropy(logits, targets, LossOptions(tile_rows=rows)).total,
        reference(logits, targets, LossOptions()),
        logits.tensors,
        1e-12,
    )


@pytest.mark.parametrize("rows", TILES)
@pytest.mark.parametrize("steps", ["plain", "capped"])
@pytest.mark.parametrize("kind", ["weights in bf16", "products in bf16"])
def test_16_bits_are_as_near_to_the_truth_as_with_logits(kind, steps, rows):
    logits, targets = tensors(torch.bfloat16 if kind == "weights in bf16" else torch.float32)
    dtype = None if kind == "weights in bf16" else torch.bfloat16
    logits = LinearLogits(logits.hidden, logits.weights, logits.bias, STEPS[steps], dtype)
    exact = logits.replaced([tensor.detach().double().requires_grad_() for tensor in logits.tensors])
    exact = LinearLogits(exact.hidden, exact.weights, exact.bias, STEPS[steps])
    options = LossOptions(0.1, 1e-2, tile_rows=rows)
    truth = torch.autograd.grad(reference(exact, targets, options), exact.tensors)
    ours = torch.autograd.grad(linear_cross_entropy(logits, targets, options).total, logits.tensors)
    stock = torch.autograd.grad(reference(logits, targets, options), logits.tensors)
    for true, mine, theirs in zip(truth, ours, stock, strict=True):
        assert mine.dtype == theirs.dtype
        error, allowed = ((tensor.double() - true).norm() for tensor in (mine, theirs))
        assert error <= 1.1 * allowed


@pytest.mark.parametrize("frozen", ["weights", "hidden", "bias"])
def test_what_is_frozen_gets_no_gradient(frozen):
    logits, targets = tensors(torch.float64)
    for tensor in {"weights": logits.weights, "hidden": logits.hidden, "bias": (logits.bias,)}[frozen]:
        tensor.requires_grad_(False)
    linear_cross_entropy(logits, targets, LossOptions(tile_rows=7)).total.backward()
    assert [t.grad is None for t in logits.tensors] == [not t.requires_grad for t in logits.tensors]


class Largest(TorchDispatchMode):
    """Remembers the sizes of all tensors that are made."""

    def __init__(self):
        super().__init__()
        self.sizes = [0]

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = result if isinstance(result, tuple | list) else (result,)
        self.sizes += [value.numel() for value in made if isinstance(value, torch.Tensor)]
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_frozen", [False, True])
def test_no_more_logits_than_a_tile_are_there(dtype, is_frozen):
    tokens, size, width, rows = 256, 512, 8, 16
    hidden = torch.randn(tokens, width, dtype=dtype, requires_grad=True)
    weight = torch.randn(size, width, dtype=dtype, requires_grad=not is_frozen)
    targets = torch.randint(size, (tokens,))
    with Largest() as watch:
        linear_cross_entropy(LinearLogits((hidden,), (weight,)), targets, LossOptions(tile_rows=rows)).total.backward()
        selected, _ = select_log_probabilities(LinearLogits((hidden,), (weight,)), targets[:, None], rows=rows)
        selected.sum().backward()
    assert max(watch.sizes) == rows * size
    assert (weight.grad is None) == is_frozen


def test_no_token_gives_zero_and_gradients_of_zero():
    logits, targets = tensors(torch.float32)
    nowhere = torch.zeros(TOKENS, dtype=torch.bool)
    for options in (LossOptions(), LossOptions(0.1, 0.1, with_metrics=True), LossOptions(tile_rows=3)):
        none = logits.rows(nowhere)
        found = linear_cross_entropy(none, targets[:0], options)
        assert found.total == 0
        for gradient in torch.autograd.grad(found.total, logits.tensors):
            assert (gradient == 0).all()
    selected, entropy = select_log_probabilities(logits.rows(nowhere), targets[:0, None])
    assert selected.shape == (0, 1) and entropy.shape == (0,)


@pytest.mark.parametrize("rows", TILES)
def test_right_predictions_and_entropies_of_the_same_pass(rows):
    logits, targets = tensors(torch.float64)
    targets[::3] = logits.materialise().argmax(-1)[::3]
    found = linear_cross_entropy(logits, targets, LossOptions(with_metrics=True, tile_rows=rows))
    p = logits.materialise().softmax(-1)
    assert found.num_correct == (p.argmax(-1) == targets).sum()
    assert_close(found.entropy, -(p * p.log()).sum())
    dense = cross_entropy_of(logits.materialise(), targets, LossOptions(with_metrics=True))
    assert_close(dense.total, found.total)
    assert_close(dense.entropy, found.entropy)
    assert dense.num_correct == found.num_correct


def test_without_gradients_nothing_is_kept():
    logits, targets = tensors(torch.float64)
    with torch.no_grad():
        found = linear_cross_entropy(logits, targets, LossOptions(tile_rows=7)).total
    assert not found.requires_grad
    assert_close(found, reference(logits, targets, LossOptions()))


def test_it_is_differentiated_once():
    logits, targets = tensors(torch.float32)
    total = linear_cross_entropy(logits, targets, LossOptions()).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="differentiated before"):
        total.backward()


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float64, 0), (torch.bfloat16, 2**-5)])
def test_small_gradients_are_left_out_where_that_is_wanted(dtype, rounding):
    logits, targets = tensors(dtype)
    with torch.no_grad():
        logits.weights[0].mul_(10)  # a sure model
    exact = torch.autograd.grad(linear_cross_entropy(logits, targets, LossOptions()).total, logits.tensors)
    for rows in TILES:
        options = LossOptions(gradient_filter=2**-12, tile_rows=rows)
        found = torch.autograd.grad(linear_cross_entropy(logits, targets, options).total, logits.tensors)
        assert any(not torch.equal(mine, true) for mine, true in zip(found, exact, strict=True))
        for mine, true in zip(found, exact, strict=True):
            assert_close(mine, true, rtol=0, atol=2**-12 * TOKENS * 10 + rounding * float(true.abs().max()))


@pytest.mark.parametrize("rows", TILES)
@pytest.mark.parametrize("steps", ["plain", "capped"])
@pytest.mark.parametrize("count", [1, 4])
def test_selected_log_probabilities_and_their_gradients(count, steps, rows):
    logits, _ = tensors(torch.float64)
    logits = with_steps(logits, STEPS[steps])
    ids = torch.rand(TOKENS, VOCABULARY, generator=torch.Generator().manual_seed(1)).topk(count).indices
    found, entropy = select_log_probabilities(logits, ids, rows)
    log_p = logits.materialise().log_softmax(-1)
    assert_close(entropy, -(log_p.exp() * log_p).sum(-1))
    wanted = log_p.gather(-1, ids)
    assert_close(found, wanted)
    pull = torch.linspace(-1, 2, found.numel(), dtype=torch.float64).view_as(found)
    assert_same((found * pull).sum(), (wanted * pull).sum(), logits.tensors, 1e-12)


@pytest.mark.parametrize("rows", TILES)
def test_a_divergence_from_a_teacher_of_which_the_likeliest_tokens_are_known(rows):
    logits, _ = tensors(torch.float64)
    teacher = torch.randn(TOKENS, VOCABULARY, dtype=torch.float64).log_softmax(-1)
    q, ids = teacher.topk(VOCABULARY)  # all of them: then it is the whole divergence
    found = (q.exp() * (q - select_log_probabilities(logits, ids, rows)[0])).sum()
    wanted = F.kl_div(logits.materialise().log_softmax(-1), teacher, reduction="sum", log_target=True)
    assert_same(found, wanted, logits.tensors, 1e-11)


@pytest.mark.parametrize("rows", [7, TOKENS])
def test_selected_log_probabilities_in_16_bits(rows):
    logits, targets = tensors(torch.bfloat16)
    found, _ = select_log_probabilities(logits, targets[:, None], rows)
    wanted = logits.materialise().float().log_softmax(-1).gather(-1, targets[:, None])
    assert found.dtype == torch.float32
    assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    ours, theirs = (torch.autograd.grad(value.sum(), logits.tensors) for value in (found, wanted))
    for mine, their in zip(ours, theirs, strict=True):
        assert_close(mine, their, rtol=0, atol=2**-7 * float(their.abs().max()))


def test_tiles_are_powers_of_two_that_fit():
    cpu = torch.device("cpu")
    assert [tile_rows(10**6, size, cpu) for size in (8_192, 32_768, 131_072, 262_144)] == [1024, 256, 128, 128]
    assert tile_rows(20, 8_192, cpu) == 20
    assert tile_rows(10**6, 10**9, cpu) == 128
    assert tile_rows(0, 8_192, cpu) == 1
