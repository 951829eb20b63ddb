"""How far a student's predictions are from a teacher's, over all tokens or over the teacher's likeliest."""

from __future__ import annotations

from math import log, log1p
from typing import Literal

import torch
from torch import Tensor

Outside = Literal["zero", "bucket", "ignored"]
"""What becomes of the tokens that are not among the teacher's K likeliest."""

_FLOOR = -1e4
"""A log-probability of which nothing is left: its exponential is 0 in float64, and 0 times it is 0."""
_REST = 1e-7
"""Least probability of what is outside of the K: less than the sum of the others is rounded by."""


def divergence(teacher_NV: Tensor, student_NV: Tensor, beta: float) -> Tensor:  # noqa: N803
    """How far q is from p at each place, in nats.

    The generalised Jensen-Shannon divergence of Agarwal et al. 2024, "On-Policy Distillation of Language Models"
    (arXiv 2306.13649), equation 1: with m = beta * p + (1 - beta) * q, it is
    beta * KL(p || m) + (1 - beta) * KL(q || m). For beta = 0 it is KL(p || q), which covers what the teacher says
    (forward), and for beta = 1 KL(q || p), which avoids what it does not say (reverse).

    Args:
        teacher_NV: log p, [..., tokens of the vocabulary]; -inf where p is 0.
        student_NV: log q, likewise.
        beta: from 0 to 1.

    Returns:
        [...]
    """
    return _terms(teacher_NV, student_NV, beta).sum(-1)


def top_k_divergence(
    teacher_NK: Tensor,  # noqa: N803
    student_NK: Tensor,  # noqa: N803
    beta: float,
    outside: Outside,
    power: float = 1.0,
) -> Tensor:
    """As `divergence`, where of the teacher its K likeliest tokens are known.

    Args:
        teacher_NK: log-probabilities [..., K] of the teacher; -inf for places that hold no token.
        student_NK: those of the same tokens by the student, out of its whole vocabulary.
        beta: as in `divergence`.
        outside: all other tokens have no probability by the teacher, whose K add up to 1 (`zero`); or they count as one
            more token, for both (`bucket`); or they are left out, and the K of both add up to 1 (`ignored`).
        power: p is taken to this power, and made to add up to 1: T1 / T2 makes of a teacher at the temperature T1 one
            at T2. Only 1 goes with `bucket`, as what is outside is not known at another temperature.

    Returns:
        [...]; 0 where the teacher has no token.

    Raises:
        ValueError: KL(q || p) is asked for where the student has probability that the teacher cannot have, which makes
            it infinite (`zero`), or a power of the bucket.
    """
    if (outside == "zero" and beta == 1) or (outside == "bucket" and power != 1):
        raise ValueError(f"there is no such divergence: beta {beta}, outside {outside}, power {power}")
    is_known = teacher_NK > -torch.inf
    has_any = is_known.any(-1)
    is_known = is_known | ~has_any[..., None]  # So that there is no NaN where there is nothing.
    p = torch.where(is_known & has_any[..., None], teacher_NK.to(student_NK.dtype) * power, -torch.inf)
    p = torch.where(has_any[..., None], p, 0.0)
    q = student_NK.masked_fill(~is_known, -torch.inf)
    if outside == "bucket":
        p, q = (torch.cat([logs, _rest(logs)[..., None]], -1) for logs in (p, q))
        is_known = torch.cat([is_known, torch.ones_like(is_known[..., :1])], -1)
    else:
        p = p - p.logsumexp(-1, keepdim=True)
    if outside == "ignored":
        q = q - q.logsumexp(-1, keepdim=True)
    found = torch.where(is_known, _terms(p, q, beta), 0.0).sum(-1)
    if outside == "zero" and beta > 0:
        # There m is (1 - beta) * q, and p is 0.
        found = found - (1 - beta) * log1p(-beta) * _rest(q).exp()
    return torch.where(has_any, found, 0.0)


def _terms(p: Tensor, q: Tensor, beta: float) -> Tensor:
    p, q = p.clamp(min=_FLOOR), q.clamp(min=_FLOOR)
    if beta == 0:
        return p.exp() * (p - q)
    if beta == 1:
        return q.exp() * (q - p)
    m = torch.logaddexp(p + log(beta), q + log1p(-beta))
    return beta * p.exp() * (p - m) + (1 - beta) * q.exp() * (q - m)


def _rest(logs: Tensor) -> Tensor:
    """The logarithm of what the probabilities lack to 1."""
    return (-torch.expm1(logs.logsumexp(-1))).clamp(min=_REST).log()
