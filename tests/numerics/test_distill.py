"""Divergences between teacher and student: against closed forms, TRL and finite differences, whole and by tiles."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.autograd import gradcheck

from dumbo.kernels.linear_logits import LinearLogits, Step
from dumbo.kernels.linear_sum import linear_sum
from dumbo.losses.distill import divergence, top_k_divergence

N, V, H = 11, 13, 5
BETAS = [0.0, 0.3, 0.5, 1.0]
OUTSIDE = ["zero", "bucket", "ignored"]


@pytest.fixture
def draw():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def logs(draw):
    """Log-probabilities of a teacher and of a student."""
    return [torch.randn(N, V, dtype=torch.float64, generator=draw).log_softmax(-1) for _ in range(2)]


def top_k(teacher, student, count):
    found, ids = teacher.topk(count)
    return found, student.gather(-1, ids)


def plain(p, q, beta):
    """By the definition, of probabilities that are not 0."""
    m = beta * p + (1 - beta) * q
    kl = lambda a, b: (a * (a / b).log()).sum(-1)  # noqa: E731
    return kl(p, q) if beta == 0 else kl(q, p) if beta == 1 else beta * kl(p, m) + (1 - beta) * kl(q, m)


@pytest.mark.parametrize("beta", BETAS)
def test_the_divergence_is_that_of_its_definition_and_of_trl(logs, beta):
    teacher, student = logs
    found = divergence(teacher, student, beta)
    assert torch.allclose(found, plain(teacher.exp(), student.exp(), beta), atol=1e-12)
    from trl.experimental.gkd import GKDTrainer

    theirs = GKDTrainer.generalized_jsd_loss(student[None], teacher[None], beta=beta, reduction="sum")
    assert torch.allclose(found.sum(), theirs, atol=1e-12)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("outside", OUTSIDE)
def test_of_a_student_that_is_the_teacher_it_is_zero(logs, beta, outside):
    teacher, _ = logs
    assert divergence(teacher, teacher, beta).abs().max() < 1e-12
    if (outside, beta) == ("zero", 1.0):
        return
    assert top_k_divergence(*top_k(teacher, teacher, V), beta, outside).abs().max() < 1e-7
    if outside != "zero":
        assert top_k_divergence(*top_k(teacher, teacher, 4), beta, outside).abs().max() < 1e-12


@pytest.mark.parametrize("beta", BETAS)
def test_all_tokens_are_as_many_as_there_are(logs, beta):
    teacher, student = logs
    whole = divergence(teacher, student, beta)
    for outside in OUTSIDE if beta < 1 else OUTSIDE[1:]:
        assert torch.allclose(top_k_divergence(*top_k(teacher, student, V), beta, outside), whole, atol=1e-5)


@pytest.mark.parametrize("beta", BETAS)
def test_what_is_outside_counts_as_is_said(logs, beta):
    teacher, student = logs
    known, same = top_k(teacher, student, 4)
    p, q = known.exp(), same.exp()
    one = lambda x: x / x.sum(-1, keepdim=True)  # noqa: E731
    assert torch.allclose(top_k_divergence(known, same, beta, "ignored"), plain(one(p), one(q), beta), atol=1e-12)
    rest = lambda x: torch.cat([x, 1 - x.sum(-1, keepdim=True)], -1)  # noqa: E731
    assert torch.allclose(top_k_divergence(known, same, beta, "bucket"), plain(rest(p), rest(q), beta), atol=1e-9)
    # A coarser look at two distributions never sees more.
    assert (top_k_divergence(known, same, beta, "bucket") <= divergence(teacher, student, beta) + 1e-9).all()
    if beta < 1:
        ids = teacher.topk(4).indices
        cut = torch.full_like(teacher, -torch.inf).scatter(-1, ids, known)
        cut = cut - cut.logsumexp(-1, keepdim=True)
        found = top_k_divergence(known, same, beta, "zero")
        assert torch.allclose(found, divergence(cut, student, beta), atol=1e-9)


def test_what_is_infinite_or_unknown_is_refused(logs):
    known, same = top_k(*logs, 4)
    with pytest.raises(ValueError, match="no such divergence"):
        top_k_divergence(known, same, 1.0, "zero")
    with pytest.raises(ValueError, match="no such divergence"):
        top_k_divergence(known, same, 0.0, "bucket", power=0.5)


def test_of_one_token_it_is_the_cross_entropy(logs):
    _, student = logs
    ids = torch.arange(N)[:, None] % V
    found = top_k_divergence(torch.full((N, 1), -3.0), student.gather(-1, ids), 0.0, "zero")
    assert torch.allclose(found, F.cross_entropy(student, ids[:, 0], reduction="none"), atol=1e-12)


def test_a_teacher_at_another_temperature(logs):
    teacher, student = logs
    warmer = (teacher / 2.5).log_softmax(-1)
    for outside in ("zero", "ignored"):
        once = top_k_divergence(*top_k(warmer, student, 4), 0.0, outside)
        assert torch.allclose(top_k_divergence(*top_k(teacher, student, 4), 0.0, outside, 1 / 2.5), once, atol=1e-12)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("outside", OUTSIDE)
def test_places_without_a_token_change_nothing_and_are_no_nan(logs, beta, outside):
    if (outside, beta) == ("zero", 1.0):
        return
    known, same = top_k(*logs, 4)
    padded = torch.cat([known, torch.full((N, 3), -torch.inf)], -1)
    theirs = torch.cat([same, torch.full((N, 3), -5.0)], -1).requires_grad_()
    found = top_k_divergence(padded, theirs, beta, outside)
    assert torch.allclose(found, top_k_divergence(known, same, beta, outside), atol=1e-12)
    nothing = top_k_divergence(torch.full_like(padded, -torch.inf), theirs, beta, outside)
    assert nothing.tolist() == [0.0] * N
    (gradient,) = torch.autograd.grad((found + nothing).sum(), theirs)
    assert gradient.isfinite().all() and not gradient[:, 4:].any()
    empty = theirs.masked_fill(torch.arange(7) >= 4, -torch.inf)
    (gradient,) = torch.autograd.grad(top_k_divergence(padded, empty, beta, outside).sum(), theirs)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("outside", [None, *OUTSIDE])
def test_gradients_at_another_temperature_are_those_of_the_loss(logs, beta, outside):
    """T^2 * divergence at T: its factor belongs to the gradient as to the value."""
    if (outside, beta) == ("zero", 1.0):
        return
    teacher, student = logs
    temperature = 2.0
    warm = (teacher / temperature).log_softmax(-1)

    def loss(z):
        logs = (z / temperature).log_softmax(-1)
        if outside is None:
            return temperature**2 * divergence(warm, logs, beta)
        return temperature**2 * top_k_divergence(*top_k(warm, logs, 4), beta, outside)

    assert gradcheck(loss, (student.clone().requires_grad_(),))


@pytest.mark.parametrize("rows", [1, 3, 7, None])
@pytest.mark.parametrize("steps", [(), (Step("scale", 0.2), Step("tanh"), Step("scale", 5.0))])
def test_sums_over_tiles_and_their_gradients_are_those_of_the_whole(draw, rows, steps):
    hidden, weight, bias = (
        torch.randn(*shape, dtype=torch.float64, generator=draw).requires_grad_() for shape in ((N, H), (V, H), (V,))
    )
    teacher = torch.randn(N, V, dtype=torch.float64, generator=draw).log_softmax(-1)

    def sums(z, tile):
        found = 4 * divergence(teacher[tile], (z / 2).log_softmax(-1), 0.3).sum()
        return torch.stack([found + z.logsumexp(-1).sum(), z.sum()])

    logits = LinearLogits((hidden,), (weight,), bias, steps)
    tiled = linear_sum(logits, sums, 2, rows)
    whole = sums(logits.materialise(), slice(None))
    assert torch.allclose(tiled, whole, atol=1e-12)
    ours = torch.autograd.grad(3 * tiled[0], (hidden, weight, bias))
    theirs = torch.autograd.grad(3 * whole[0], (hidden, weight, bias))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(ours, theirs, strict=True))

    with torch.no_grad():
        assert torch.allclose(linear_sum(logits, sums, 2, rows), whole, atol=1e-12)


def test_of_no_token_sums_and_gradients_are_zero():
    hidden, weight = torch.zeros(0, H, requires_grad=True), torch.ones(V, H, requires_grad=True)
    found = linear_sum(LinearLogits((hidden,), (weight,)), lambda z, tile: z.sum()[None], 1)
    assert found.tolist() == [0.0] and not torch.autograd.grad(found[0], weight)[0].any()


def test_weights_in_16_bits_have_gradients_that_are_rounded_once(draw):
    hidden, weight = (torch.randn(*shape, generator=draw).bfloat16() for shape in ((512, H), (V, H)))
    made = {}
    for rows in (1, 512):
        trained = weight.clone().requires_grad_()
        sums = linear_sum(LinearLogits((hidden,), (trained,)), lambda z, tile: z.logsumexp(-1).sum()[None], 1, rows)
        made[rows] = torch.autograd.grad(sums[0], trained)[0].float()
    assert torch.allclose(made[1], made[512], rtol=0.02, atol=0.02 * float(made[512].abs().max()))
