"""Which rows every rank takes in every forward pass, decided before training: exact steps, equal work on all ranks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

FILLER = -1
"""Index of the row that nobody trains on: a rank takes it where the last rows of an epoch do not reach all ranks."""


@dataclass(frozen=True)
class BatchPlan:
    """The order of rows depends on `seed` and epoch alone, and a global batch holds the same rows on any number of
    ranks."""

    num_rows: int
    batch_size: int
    """Rows per optimizer step over all ranks; the last step of an epoch takes what is left."""
    physical_batch_size: int
    world_size: int
    seed: int
    shuffle: bool

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in a pass over the rows."""
        return -(-self.num_rows // self.batch_size)

    @property
    def micro_batches_per_epoch(self) -> int:
        """Forward passes of each rank in a pass over the rows."""
        at_once = self.physical_batch_size * self.world_size
        whole, rest = divmod(self.num_rows, self.batch_size)
        return whole * (self.batch_size // at_once) + -(-rest // at_once)

    def micro_batches(self, epoch: int, rank: int) -> Iterator[list[int]]:
        """The rows of each forward pass of `rank` in `epoch`, grouped by optimizer step."""
        import numpy as np

        order = np.arange(self.num_rows)
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(self.num_rows)
        at_once = self.physical_batch_size * self.world_size
        for start in range(0, self.num_rows, self.batch_size):
            step = order[start : start + self.batch_size]
            for first in range(0, len(step), at_once):
                begin = first + rank * self.physical_batch_size
                rows = step[begin : begin + self.physical_batch_size].tolist()
                yield rows or [FILLER]
