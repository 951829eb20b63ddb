"""Packed attention by PyTorch's kernels for CUDA: variable-length attention, and flex attention for the rest."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dumbo.kernels.packed_attention import Scoring
    from dumbo.kernels.packed_row import PackedRow, Pattern

LARGEST_HEAD = 256
"""The largest head size that PyTorch's flash attention takes."""


def varlen_fits(query: Tensor, value: Tensor, scoring: Scoring) -> bool:
    """Whether variable-length attention can compute this: CUDA of capability 8, half precision, plain scores."""
    return (
        query.is_cuda
        and query.dtype in (torch.bfloat16, torch.float16)
        and query.shape[-1] == value.shape[-1] <= LARGEST_HEAD
        and scoring.is_plain
        and scoring.dropout == 0.0
        and torch.version.hip is None
        and torch.cuda.get_device_capability(query.device)[0] >= 8
    )


def varlen_packed(
    query: Tensor, key: Tensor, value: Tensor, row: PackedRow, pattern: Pattern, scoring: Scoring
) -> Tensor:
    """Shapes as in `packed_attention`."""
    from torch.nn.attention.varlen import varlen_attn

    if pattern.window is None:
        window = (-1, 0) if pattern.causal else (-1, -1)
    else:
        window = (pattern.window - 1, 0) if pattern.causal else (pattern.window, pattern.window)
    q, k, v = (states[0].transpose(0, 1).contiguous() for states in (query, key, value))
    longest = max(row.lengths)
    grouped = q.shape[1] != k.shape[1]
    result = varlen_attn(
        q,
        k,
        v,
        row.boundaries,
        row.boundaries,
        longest,
        longest,
        scale=scoring.scaling,
        window_size=window,
        enable_gqa=grouped,
    )
    assert isinstance(result, Tensor)
    return result[None]


def flex_fits(query: Tensor, scoring: Scoring) -> bool:
    """Whether flex attention can compute this: CUDA, no dropout."""
    return query.is_cuda and scoring.dropout == 0.0


def flex_packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    row: PackedRow,
    pattern: Pattern,
    scoring: Scoring,
    *,
    compiled: bool = True,
) -> Tensor:
    """Shapes as in `packed_attention`. Uncompiled it makes all scores of the row, and runs anywhere."""
    from torch.nn.attention.flex_attention import AuxRequest, flex_attention

    attend: Any = _compiled_flex() if compiled else flex_attention
    softcap = scoring.softcap

    def capped(score: Tensor, batch: Tensor, head: Tensor, query_at: Tensor, key_at: Tensor) -> Tensor:
        return score if softcap is None else softcap * torch.tanh(score / softcap)

    result, aux = attend(
        query,
        key,
        value,
        score_mod=None if softcap is None else capped,
        block_mask=_block_mask(row, pattern, compiled),
        scale=scoring.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
        return_aux=AuxRequest(lse=True),
    )
    if scoring.sinks is not None:
        # A sink adds exp(sink) to the softmax's denominator exp(lse): the result shrinks by sigmoid(lse - sink).
        share = torch.sigmoid(aux.lse - scoring.sinks.float().view(1, -1, 1))
        result = (result * share.unsqueeze(-1)).to(query.dtype)
    return result.transpose(1, 2)  # type: ignore[no-any-return]


@cache
def _compiled_flex() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def _block_mask(row: PackedRow, pattern: Pattern, compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    made = row.block_masks.get(pattern)
    if made is None:
        documents, causal, window = row.document_of, pattern.causal, pattern.window

        def sees(batch: Tensor, head: Tensor, query_at: Tensor, key_at: Tensor) -> Tensor:
            together = documents[query_at] == documents[key_at]
            if causal:
                together = together & (key_at <= query_at)
                return together if window is None else together & (query_at - key_at < window)
            return together if window is None else together & ((query_at - key_at).abs() <= window)

        total = len(documents)
        made = create_block_mask(sees, None, None, total, total, device=row.device, _compile=compiled)
        row.block_masks[pattern] = made
    return made
