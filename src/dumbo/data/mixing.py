"""Which rows an epoch has: all of them, or of each source as many as its weight says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dumbo.data.dataset import TokenDataset

Mix = Literal["passes", "rows", "tokens"]

_STREAM = 3
"""Keeps the generator apart from others that are seeded by the run's seed."""


@dataclass(frozen=True)
class Share:
    """What an epoch takes of one source."""

    rows: NDArray[np.int64]
    """Numbers of the source's rows."""
    count: int
    """Rows of it in an epoch; more than there are come again."""


@dataclass(frozen=True)
class Mixture:
    """The rows of each epoch: always as many of each source, and none a second time before all have come once."""

    shares: tuple[Share, ...]
    seed: int
    shuffle: bool

    def __len__(self) -> int:
        """Rows of an epoch."""
        return sum(share.count for share in self.shares)

    @property
    def is_whole(self) -> bool:
        """Whether every epoch has the same rows, as no source is gone through in part."""
        return all(share.count % max(len(share.rows), 1) == 0 for share in self.shares)

    def rows(self, epoch: int) -> NDArray[np.int64]:
        """The rows of an epoch (from 0), in the order of the sources."""
        import numpy as np

        taken = [self._take(number, share, epoch) for number, share in enumerate(self.shares)]
        return np.concatenate([*taken, np.zeros(0, np.int64)])

    def _take(self, number: int, share: Share, epoch: int) -> NDArray[np.int64]:
        import numpy as np

        size, first = len(share.rows), epoch * share.count
        if not share.count:
            return np.zeros(0, np.int64)
        parts = []
        for turn in range(first // size, (first + share.count - 1) // size + 1):
            order = share.rows
            if self.shuffle and share.count % size:
                order = np.random.default_rng([self.seed, _STREAM, number, turn]).permutation(share.rows)
            begin = turn * size
            parts.append(order[max(first - begin, 0) : first + share.count - begin])
        return np.concatenate(parts)


def mix(dataset: TokenDataset, weights: Sequence[float], by: Mix, seed: int, shuffle: bool) -> Mixture:
    """The mixture of the sources in `dataset`, each with its weight.

    By `passes` a weight is how often an epoch goes through the source; by `rows` or `tokens` it is the source's share
    of an epoch that is as long, in rows or tokens, as all sources together.
    """
    import numpy as np

    rows = [np.flatnonzero(dataset.source == number) for number in range(len(weights))]
    if by == "passes":
        counts = [weight * len(of_source) for weight, of_source in zip(weights, rows, strict=True)]
    else:
        # Sources without a row, all of it held out or dropped, have no share.
        kept = [weight if len(of_source) else 0.0 for weight, of_source in zip(weights, rows, strict=True)]
        sizes = [int(dataset.length[of_source].sum()) if by == "tokens" else len(of_source) for of_source in rows]
        shares = [weight / (sum(kept) or 1.0) * sum(sizes) for weight in kept]
        counts = [
            share * len(of_source) / max(size, 1) for share, of_source, size in zip(shares, rows, sizes, strict=True)
        ]
    return Mixture(
        tuple(Share(of_source, round(count)) for of_source, count in zip(rows, counts, strict=True)), seed, shuffle
    )
