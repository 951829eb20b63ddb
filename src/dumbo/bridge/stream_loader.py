"""The batches of a stream for Transformers' Trainer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from dumbo.data.streaming import Stream, rank_batches
from dumbo.errors import DumboError


class StreamLoader(DataLoader[Any]):
    """The forward passes of one rank: every rank has the same stream, and takes its part of each global batch."""

    def __init__(
        self,
        stream: Stream,
        steps: int,
        batch_size: int,
        physical_batch_size: int,
        world_size: int,
        rank: int,
        **options: Any,
    ) -> None:
        """`batch_size` sequences are a step, over all ranks; `options` are those of PyTorch's DataLoader."""
        self.batches = _StreamBatches(stream, steps, batch_size, physical_batch_size, world_size, rank)
        # With a generator of its own: each pass draws a seed for workers, which would move the training's dropout.
        super().__init__(self.batches, batch_size=None, generator=torch.Generator(), **options)


class _StreamBatches(IterableDataset[Any]):
    def __init__(
        self, stream: Stream, steps: int, batch_size: int, physical_batch_size: int, world_size: int, rank: int
    ) -> None:
        self._stream, self._steps, self._batch_size = stream, steps, batch_size
        self._shares = (physical_batch_size, world_size, rank)
        self.failed: DumboError | None = None
        """What ended the stream before its time."""

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for _ in range(self._steps):
            try:
                batch = self._stream.take(self._batch_size)
            except DumboError as error:
                self.failed = error
                raise
            for pieces in rank_batches(batch, *self._shares):
                yield [piece.item for piece in pieces]

    def __len__(self) -> int:
        physical, world, _ = self._shares
        return self._steps * (self._batch_size // (physical * world))
