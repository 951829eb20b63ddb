"""Labels of tokens: which of them have only characters that are trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING

from dumbo.data.records import IGNORED

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Span = tuple[int, int]
"""Characters of a text: the first, and the one after the last."""


def label_tokens(
    input_ids: Sequence[int], offsets: Sequence[Span] | NDArray[np.int64], spans: Sequence[Span]
) -> tuple[list[int], NDArray[np.intp]]:
    """Return the labels, and the positions of the tokens that straddle.

    A label is the token's id where all of its characters lie in one of `spans`, else `IGNORED`. A token that reaches
    over the edge of a span straddles: it is ignored too. `spans` are in order and apart (`join_spans`).
    `offsets` are the tokens' characters, in order. A token without characters (a prefix space that the tokenizer adds)
    belongs to the span that starts or goes on where it stands.
    """
    import numpy as np

    starts, ends = offset_array(offsets).T
    edges = np.array(spans, np.int64).reshape(-1, 2)
    labels, straddling = label_places(np.asarray(input_ids, np.int64), starts, ends, edges)
    return labels.tolist(), np.flatnonzero(straddling)


def label_places(
    input_ids: NDArray[np.integer], starts: NDArray[np.int64], ends: NDArray[np.int64], spans: NDArray[np.int64]
) -> tuple[NDArray[np.integer], NDArray[np.bool_]]:
    """As `label_tokens`, of arrays: the tokens' first characters and those after the last, and spans [spans, 2]. Return
    the labels, and whether each token straddles."""
    import numpy as np

    # A span behind the text saves a case for tokens behind the last one.
    edges = np.concatenate([spans, np.full((1, 2), 2**62)])
    current = np.searchsorted(edges[:, 1], starts, side="right")
    first, last = edges[current, 0], edges[current, 1]
    inside = (first <= starts) & (ends <= last)
    straddling = ~inside & (np.maximum(starts, first) < np.minimum(ends, last))
    return np.where(inside, input_ids, input_ids.dtype.type(IGNORED)), straddling


def offset_array(offsets: Sequence[Span] | NDArray[np.int64]) -> NDArray[np.int64]:
    """The offsets as an array [tokens, 2] of first characters and of those after the last."""
    import numpy as np

    if isinstance(offsets, np.ndarray):
        return offsets
    return np.fromiter(chain.from_iterable(offsets), np.int64, 2 * len(offsets)).reshape(-1, 2)


def join_spans(spans: Iterable[Span]) -> list[Span]:
    """Spans in order, those that touch made one: a token over their common edge lies within what is trained."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        elif start < end:
            joined.append((start, end))
    return joined


def subtract_spans(spans: Iterable[Span], removed: Iterable[Span]) -> list[Span]:
    """What `spans` have and `removed` have not, in order."""
    left: list[Span] = []
    holes = join_spans(removed)
    current = 0
    for start, end in join_spans(spans):
        while current < len(holes) and holes[current][1] <= start:
            current += 1
        position = start
        # The last hole may reach into the next span: it is looked at again there.
        for hole in islice(holes, current, None):
            if hole[0] >= end:
                break
            if position < hole[0]:
                left.append((position, hole[0]))
            position = max(position, hole[1])
            current += hole[1] <= end
        if position < end:
            left.append((position, end))
    return left
