"""The heavy half: entropies of the likeliest tokens as weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dumbo.job import TokenWeights


def entropy_weights(alpha: float, top_k: int) -> TokenWeights:
    """(H / ln k) ^ alpha, where H is the entropy of the softmax over the `top_k` largest logits of a token, in nats.

    Source: Diao et al. 2026, "Entropy-Adaptive Fine-Tuning" (arXiv 2601.02151), equations 2 and 3, where alpha is 1 and
    k is 20; the power is that of the authors' code.
    """

    def weigh(logits_NV: Tensor, log_probabilities_N: Tensor) -> Tensor:  # noqa: N803
        count = min(top_k, logits_NV.shape[-1])
        likeliest = torch.softmax(logits_NV.topk(count, -1).values, -1)
        # `entr` is 0 where a probability is: logits may be -inf.
        share: Tensor = torch.special.entr(likeliest).sum(-1) / math.log(count)
        return share.pow(alpha)

    return weigh
