"""Our packed attention beside PyTorch's with a mask of all tokens by all tokens, forward and backward, on this machine.

The peer is what Transformers does for packed rows with `sdpa`: one call with a bool mask `[T, T]` in which documents
do not see each other. Rows are packed by filling them with documents whose lengths are drawn from a log-normal
distribution, as lengths of conversations are; medians and spread are options. The mask is made once, and so is our
order of the documents, as in a model whose layers share them; neither is timed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from packed_rows import measure_packed
from torch import Tensor

from dumbo.kernels.packed_attention import Scoring, packed_attention
from dumbo.kernels.packed_row import PackedRow, Pattern

RESULT = Path(__file__).parent / "results" / "packed_attention.json"
SHAPES = ((4, 2, 16), (9, 3, 64), (16, 8, 64))
"""Query heads, key heads, head size: a toy, SmolLM2-135M and Qwen3-0.6B (with heads half as wide)."""


def main(words: Sequence[str] | None = None) -> int:
    """Measure, print, write the JSON file."""

    def measure_all(lengths: tuple[int, ...], median: int, repeat: int) -> list[dict[str, Any]]:
        return [measure(shape, lengths, median, repeat) for shape in SHAPES]

    return measure_packed(words, __doc__ or "", RESULT, 2048, [50, 150, 400], measure_all, table)


def measure(shape: tuple[int, int, int], lengths: tuple[int, ...], median: int, repeat: int) -> dict[str, Any]:
    """Milliseconds of both on the same tensors, and how far apart their results are."""
    heads, groups, size = shape
    draw = torch.Generator().manual_seed(0)
    # As layers have them: tokens first in memory, heads first in shape.
    tensors = [torch.randn(1, sum(lengths), count, size, generator=draw) for count in (heads, groups, groups)]
    query, key, value = (tensor.transpose(1, 2).requires_grad_() for tensor in tensors)
    row = PackedRow(lengths, torch.device("cpu"))
    place = torch.arange(sum(lengths))
    mask = (row.document_of[:, None] == row.document_of[None]) & (place[:, None] >= place[None])

    def ours() -> Tensor:
        return packed_attention(query, key, value, row, Pattern(causal=True), Scoring())

    def peer() -> Tensor:
        repeats = heads // groups
        keys, values = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask[None, None]).transpose(1, 2)

    difference = float((ours() - peer()).detach().abs().max())
    assert difference < 1e-4, difference
    times = [(seconds(ours), seconds(peer)) for _ in range(repeat)]
    ours_ms, peer_ms = (round(1000 * statistics.median(column), 2) for column in zip(*times, strict=True))
    return {
        "heads": heads,
        "key_heads": groups,
        "head_size": size,
        "documents": len(lengths),
        "median_length": median,
        "ours_ms": ours_ms,
        "sdpa_mask_ms": peer_ms,
        "speedup": round(peer_ms / ours_ms, 2),
        "largest_difference": difference,
    }


def seconds(attend: Callable[[], Tensor]) -> float:
    """One pass forward and backward."""
    start = time.perf_counter()
    attend().sum().backward()
    return time.perf_counter() - start


def table(cases: Sequence[dict[str, Any]]) -> str:
    """The cases as text."""
    lines = ["heads/keys/size  documents    ours ms  sdpa with mask ms  speedup"]
    for case in cases:
        shape = f"{case['heads']}/{case['key_heads']}/{case['head_size']}"
        lines.append(
            f"{shape:15}  {case['documents']:9}  {case['ours_ms']:9.1f}  {case['sdpa_mask_ms']:17.1f}"
            f"  {case['speedup']:7.1f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
