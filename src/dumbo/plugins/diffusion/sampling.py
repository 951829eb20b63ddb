"""Fills in masked tokens, the surest first, in a given number of forward passes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor], Tensor]
"""(ids [B, T], places [B, T] bool) -> logits [places, vocabulary] of the tokens at these places."""


def unmask(
    predict: Predict,
    ids_BT: Tensor,
    open_BT: Tensor,
    mask_token: int,
    steps: int,
    temperature: float,  # noqa: N803
) -> Tensor:
    """Fill in the places of `open_BT` in at most `steps` forward passes; no other token changes, and none twice.

    In pass s of S a row has k = max(1, floor(r / (S - s))) of its r tokens that are left filled in, in the last pass
    all: those whose token has the highest probability. That token is the likeliest one or, at a temperature above 0,
    drawn by the Gumbel maximum of logits / temperature; the mask token never is. LLaDA (Nie et al. 2025, arXiv
    2502.09992), section 2.4: low-confidence remasking, where what was filled in stays.

    Args:
        predict: the model.
        ids_BT: [rows, tokens].
        open_BT: bool [rows, tokens].
        mask_token: what stands in `ids_BT` where nothing is filled in yet.
        steps: S, 1 or more.
        temperature: 0 or more.

    Returns:
        [rows, tokens], without the mask token at the places of `open_BT`.
    """
    left = open_BT.clone()
    ids = ids_BT.masked_fill(left, mask_token)
    for step in range(steps):
        if not left.any():
            break
        tokens, confidence = choose(predict(ids, left), mask_token, temperature)
        chosen = torch.zeros_like(ids)
        chosen[left] = tokens
        sure = torch.full(ids.shape, -1.0, device=ids.device)
        sure[left] = confidence
        counts = how_many(left.sum(dim=1), steps - step)
        rank = sure.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        filled = left & (rank < counts[:, None])
        ids = torch.where(filled, chosen, ids)
        left = left & ~filled
    return ids


def how_many(left_B: Tensor, passes: int) -> Tensor:  # noqa: N803
    """Of rows with so many masked tokens left, how many to fill in when so many passes are left, this one included."""
    return torch.minimum(left_B, (left_B // passes).clamp(min=1))


def choose(logits_NV: Tensor, mask_token: int, temperature: float) -> tuple[Tensor, Tensor]:  # noqa: N803
    """A token for each place, and its probability; [N] each."""
    z = logits_NV.float().index_fill(1, torch.tensor([mask_token], device=logits_NV.device), -torch.inf)
    scores = z
    if temperature > 0:
        even = torch.rand_like(z, dtype=torch.float64).clamp(min=torch.finfo(torch.float64).tiny)
        scores = z.double() / temperature - (-even.log()).log()
    tokens = scores.argmax(dim=-1)
    return tokens, z.softmax(dim=-1).gather(1, tokens[:, None])[:, 0]
