"""Attention over a packed row in which no document sees another, on any device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dumbo.kernels.packed_gpu import flex_fits, flex_packed, varlen_fits, varlen_packed
from dumbo.kernels.packed_row import Layout, PackedRow, Pattern, lay_out, take_back


@dataclass(frozen=True)
class Scoring:
    """How scores are made of queries and keys."""

    scaling: float | None = None
    """Scores are products times this; None for one over the square root of the head size."""
    softcap: float | None = None
    """Scores are `softcap * tanh(score / softcap)`, as in Gemma 2."""
    sinks: Tensor | None = None
    """`[H]`: a score of each head that takes part in the softmax and has no value, as in gpt-oss."""
    dropout: float = 0.0
    """The share of weights that become 0."""

    @property
    def is_plain(self) -> bool:
        """Whether PyTorch's own attention does all of it."""
        return self.softcap is None and self.sinks is None


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, row: PackedRow, pattern: Pattern, scoring: Scoring
) -> Tensor:
    """Attend inside of each document of `row`, under autocast in its type, as PyTorch's own attention does.

    Args:
        query: `[1, H, T, D]`, documents one after the other.
        key: `[1, K, T, D]`, where `K` divides `H`.
        value: `[1, K, T, V]`.
        row: the documents.
        pattern: which tokens of its document a token sees.
        scoring: how scores are made.

    Returns:
        `[1, T, H, V]`.
    """
    query, key, value = (in_autocast(states) for states in (query, key, value))
    if varlen_fits(query, value, scoring):
        return varlen_packed(query, key, value, row, pattern, scoring)
    if flex_fits(query, scoring):
        return flex_packed(query, key, value, row, pattern, scoring)
    return grouped_packed(query, key, value, row, pattern, scoring)


def in_autocast(states: Tensor) -> Tensor:
    """`states` in the type that autocast computes in, where it is on for their device; float64 stays.

    Rotary positions make queries and keys float32 under autocast, while values are in half precision. Most kernels
    take one type alone, and which of them fit is a question of the type.
    """
    device = states.device.type
    if states.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return states
    return states.to(torch.get_autocast_dtype(device))


def grouped_packed(
    query: Tensor, key: Tensor, value: Tensor, row: PackedRow, pattern: Pattern, scoring: Scoring
) -> Tensor:
    """`packed_attention` by PyTorch's attention on groups of documents of about equal length.

    Padding stands behind the tokens of a document, where causal attention does not look.
    """
    width = query.shape[1] * query.shape[3]
    layout: Layout = row.layout(width, pattern.causal)
    laid_out = [lay_out(states[0].transpose(0, 1), layout) for states in (query, key, value)]
    results = []
    for group, *pieces in zip(layout.groups, *laid_out, strict=True):
        q, k, v = (piece.transpose(1, 2) for piece in pieces)
        allowed = pattern.allowed(group.length, query.device)
        causal = pattern.causal and allowed is None
        results.append(scaled_dot_product(q, k, v, allowed, causal, scoring).transpose(1, 2))
    return take_back(results, layout)[None]


def scaled_dot_product(
    query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, causal: bool, scoring: Scoring
) -> Tensor:
    """Attention of a padded batch.

    Args:
        query: `[B, H, Q, D]`.
        key: `[B, K, N, D]`, where `K` divides `H`.
        value: `[B, K, N, V]`.
        allowed: bool, or floats to add to the scores, broadcastable to `[B, H, Q, N]`; None for all.
        causal: a token sees those up to its own position; not together with `allowed`.
        scoring: how scores are made.

    Returns:
        `[B, H, Q, V]`.
    """
    if scoring.is_plain:
        options: dict[str, Any] = {"dropout_p": scoring.dropout, "scale": scoring.scaling}
        grouped = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=allowed, is_causal=causal, enable_gqa=grouped, **options
        )
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
    scaling = query.shape[-1] ** -0.5 if scoring.scaling is None else scoring.scaling
    scores = (query @ key.transpose(-1, -2)) * scaling
    if scoring.softcap is not None:
        scores = torch.tanh(scores / scoring.softcap) * scoring.softcap
    if causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if allowed is not None:
        lowest = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~allowed, lowest) if allowed.dtype == torch.bool else scores + allowed
    if scoring.sinks is not None:
        sinks = scoring.sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sinks], dim=-1)
    weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    if scoring.sinks is not None:
        weights = weights[..., :-1]
    return F.dropout(weights, scoring.dropout) @ value
