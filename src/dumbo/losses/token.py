"""The loss of next-token prediction."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dumbo.data.records import IGNORED, WEIGHTS


def next_token_cross_entropy(logits_BTV: Tensor, labels_BT: Tensor, label_smoothing: float = 0.0) -> Tensor:  # noqa: N803
    """Sum over supervised tokens of the cross entropy of predicting each token from those before it.

    The logits at position t predict the label at t + 1. With `label_smoothing` = s the target is
    (1 - s) * one_hot + s / V (Szegedy et al. 2016, arXiv 1512.00567, section 7). Positions labelled -100 do not count.

    Args:
        logits_BTV: [sequences, tokens, vocabulary], any float type; 16 bits are raised to float32 for the sum.
        labels_BT: [sequences, tokens], token ids or -100.
        label_smoothing: s, from 0 to below 1.

    Returns:
        Scalar in nats, 0 with a gradient of 0 where nothing is supervised.
    """
    targets_BT = next_targets(labels_BT)
    supervised_BT = targets_BT != IGNORED
    precision = torch.promote_types(logits_BTV.dtype, torch.float32)
    # Only supervised rows are copied and cast: prompts and padding cost no float32 logits.
    logits_NV, targets_N = logits_BTV[supervised_BT].to(precision), targets_BT[supervised_BT]
    return F.cross_entropy(logits_NV, targets_N, reduction="sum", label_smoothing=label_smoothing)


def next_targets(labels_BT: Tensor) -> Tensor:  # noqa: N803
    """[sequences, tokens]: at each position the label of the next one, -100 at the last."""
    return F.pad(labels_BT[:, 1:], (0, 1), value=IGNORED)


def next_weights(weights_BT: Tensor) -> Tensor:  # noqa: N803
    """[sequences, tokens]: at each position the weight of the next one's label, 0 at the last."""
    return F.pad(weights_BT[:, 1:], (0, 1))


def sum_of_weights(batch: Mapping[str, Tensor]) -> Tensor:
    """What a mean over a batch's supervised tokens divides by, a float64 scalar: the sum of their `weights`, or their
    number where the batch has none."""
    if WEIGHTS not in batch:
        return count_supervised(batch["labels"]).double()
    weights, supervised = batch[WEIGHTS][:, 1:], batch["labels"][:, 1:] != IGNORED
    return (weights * supervised).sum(dtype=torch.float64)


def count_supervised(labels_BT: Tensor) -> Tensor:  # noqa: N803
    """Number of tokens that `next_token_cross_entropy` sums over, as an int64 scalar."""
    return (labels_BT[:, 1:] != IGNORED).sum(dtype=torch.int64)
