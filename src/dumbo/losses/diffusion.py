"""Masked diffusion: how much is masked at which time, and what the loss of a masked token weighs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class MaskSchedule:
    """The probability p with which each token is masked at a time t in [0, 1], and what follows from it.

    `linear`: p = low + (high - low) * t; `cosine`: p = low + (high - low) * (1 - cos(pi * t / 2)); both at least `eps`.
    With low = 0 and high = 1 the first is that of LLaDA (Nie et al. 2025, arXiv 2502.09992) and the log-linear one of
    MDLM (Sahoo et al. 2024, arXiv 2406.07524).
    """

    kind: Literal["linear", "cosine"]
    low: float
    high: float
    eps: float

    def probabilities(self, times: Tensor) -> Tensor:
        """p of each time, of the same shape."""
        share = times if self.kind == "linear" else 1 - torch.cos(times * (math.pi / 2))
        return (self.low + (self.high - self.low) * share).clamp(min=self.eps)

    @property
    def mean(self) -> float:
        """The mean of p over all times: of so large a share of the tokens the loss is known on average."""
        times = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
        return float(self.probabilities(times).mean())

    @property
    def is_bound(self) -> bool:
        """Whether the sum over masked tokens, weighted by 1 / p, bounds the negative log-likelihood of all tokens.

        The bound (MDLM, equation 10) weighs them by p'(t) / p(t), which is 1 / p for the linear schedule from 0 to 1
        alone. The times below `eps` are then one step of the bound in discrete time (MDLM, equation 8), from p = 0 to
        p = eps, which weighs (eps - 0) / eps = 1: they are a share eps of all times, and weigh 1 / eps.
        """
        return self.kind == "linear" and self.low == 0 and self.high == 1

    def weights(self, probabilities: Tensor, importance: bool) -> Tensor:
        """What the cross entropy of a token that was masked with these probabilities is multiplied by.

        1 / p with `importance` (LLaDA, equation 3): then the sum over masked tokens has the mean of a sum over all
        tokens, whatever the schedule. Without, 1 / E[p]: all masked tokens weigh the same, and 1 on average.
        """
        return 1 / probabilities if importance else torch.full_like(probabilities, 1 / self.mean)


def predicting_places(targets_BT: Tensor, shifted: bool) -> Tensor:  # noqa: N803
    """Bool [sequences, tokens]: the places whose logits predict the tokens that are true in `targets_BT`.

    Shifted, a token is predicted at the place before it, as in models that were trained to predict the next token; the
    first token of a row then has no such place and must not be among the targets.
    """
    if not shifted:
        return targets_BT
    return torch.cat([targets_BT[:, 1:], torch.zeros_like(targets_BT[:, :1])], dim=1)
