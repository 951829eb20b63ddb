"""Losses that count something of every token that is trained, for the logs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from dumbo.job import Batch


class CountingLoss(ABC):
    """A loss whose `counts` the trainer logs as means and keeps in checkpoints; those of a step that is made again are
    forgotten."""

    counts: Tensor | None = None
    """Sums over what was trained since they were last taken; None where there is nothing."""
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext
    """What the model's forward passes compute in, which the trainer says; for a loss that asks another model, too."""
    _counts_before: Tensor | None = None

    @abstractmethod
    def __call__(self, model: nn.Module, batch: Batch, num_items: Tensor) -> Tensor:
        """The loss; see `dumbo.job.Loss`."""

    @abstractmethod
    def take_means(self, device: torch.device, world_size: int) -> dict[str, float]:
        """By name, what was counted on all ranks; to be called on all of them. It begins anew."""

    def begin_step(self) -> None:
        """What is counted from here on belongs to a step that may be made again."""
        self._counts_before = self.counts

    def forget_step(self) -> None:
        """The step is made again from its beginning."""
        self.counts = self._counts_before

    def count(self, found: Tensor) -> None:
        """Add what a forward pass has counted, as `counted` gives it."""
        self.counts = found if self.counts is None else self.counts.to(found.device) + found

    def take_sums(self, count: int, device: torch.device, world_size: int) -> list[float]:
        """The `count` sums over all ranks, which must all call this. It begins anew."""
        counts, self.counts = self.counts, None
        return summed(counts, count, device, world_size)


def counted(device: torch.device, *numbers: Tensor | float) -> Tensor:
    """The numbers, in float64 and without gradients."""
    return torch.stack([torch.as_tensor(number, device=device).detach().double() for number in numbers])


def summed(counts: Tensor | None, count: int, device: torch.device, world_size: int) -> list[float]:
    """`count` numbers, added over all ranks, which must all call this; those of a rank without any are zeros."""
    counts = torch.zeros(count, dtype=torch.float64, device=device) if counts is None else counts.to(device)
    if world_size > 1:
        torch.distributed.all_reduce(counts)
    numbers: list[float] = counts.tolist()
    return numbers
