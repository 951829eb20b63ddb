"""The heavy half: probabilities of the right tokens as weights."""

from __future__ import annotations

from torch import Tensor

from dumbo.job import TokenWeights


def probability_weights(alpha: float) -> TokenWeights:
    """p ^ alpha, where p is the probability of the right token.

    Sources: with alpha = 1 Wu et al. 2025, "On the Generalization of SFT" (arXiv 2508.05629), equation 9: the gradient
    is that of -p. Other powers have the gradient of (1 - p ^ alpha) / alpha: Li et al. 2025, "Beyond Log Likelihood"
    (arXiv 2510.00526); alpha -> 0 is cross entropy.
    """

    def weigh(logits_NV: Tensor, log_probabilities_N: Tensor) -> Tensor:  # noqa: N803
        return (alpha * log_probabilities_N).exp()

    return weigh
