"""Low-pass filters over the gradients of one weight after another (Grokfast, arXiv 2405.20233)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dumbo.errors import RunError


class Filter(Protocol):
    """Amplifies what a weight's gradients have in common; asked once per step for each weight that has one."""

    copies: int
    """How many times the size of the gradient it keeps."""

    def apply(self, name: str, gradient: Tensor) -> None:
        """Take the gradient in, and change it in place."""

    def state(self) -> dict[str, Any]:
        """What it keeps, by the names of the weights."""

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""


class ExponentialAverage:
    """m <- alpha m + (1 - alpha) g, beginning with m = g, and g <- g + lamb m (algorithm 2 of the paper).

    The averages are float32, as an average in 16 bits would not see small steps.
    """

    copies = 1

    def __init__(self, alpha: float, lamb: float) -> None:
        """0 <= alpha < 1."""
        self._alpha, self._lamb = alpha, lamb
        self._averages: dict[str, Tensor] = {}

    def apply(self, name: str, gradient: Tensor) -> None:
        """A weight whose first gradient this is begins here."""
        if name not in self._averages:
            self._averages[name] = wide(gradient)
        average = self._averages[name] = at_home(name, self._averages[name], gradient)
        average.lerp_(gradient.to(average.dtype), 1 - self._alpha)
        gradient.add_(average, alpha=self._lamb)

    def state(self) -> dict[str, Any]:
        """The averages."""
        return dict(self._averages)

    def load(self, state: Mapping[str, Any]) -> None:
        """Take them over."""
        self._averages = dict(state)


@dataclass
class _Window:
    last: Tensor
    """[window_size, ...]: the last gradients, each in place number `seen` modulo the window's size."""
    total: Tensor
    """Their sum."""
    seen: int = 0
    """Gradients so far."""


class MovingAverage:
    """g <- g + lamb mean(the last gradients, this one included), or their sum (algorithm 1 of the paper).

    With `warmup` a gradient stays as it is until there are `size` of its weight.
    """

    def __init__(self, size: int, lamb: float, is_sum: bool, warmup: bool) -> None:
        """`size` is at least 1."""
        self.copies = size + 1
        self._size, self._lamb, self._is_sum, self._warmup = size, lamb, is_sum, warmup
        self._windows: dict[str, _Window] = {}

    def apply(self, name: str, gradient: Tensor) -> None:
        """A weight whose first gradient this is begins its window here."""
        window = self._window(name, gradient)
        place = window.seen % self._size
        if window.seen >= self._size:
            window.total -= window.last[place]
        window.last[place] = gradient
        window.seen += 1
        if window.seen % self._size:
            window.total += window.last[place]
        else:
            # Once a round the sum is made anew, so that its rounding does not pile up.
            torch.sum(window.last, 0, out=window.total)
        count = min(window.seen, self._size)
        if count == self._size or not self._warmup:
            gradient.add_(window.total, alpha=self._lamb if self._is_sum else self._lamb / count)

    def _window(self, name: str, gradient: Tensor) -> _Window:
        if name not in self._windows:
            zero = torch.zeros_like(wide(gradient))
            self._windows[name] = _Window(zero.expand(self._size, *zero.shape).clone(), zero)
        window = self._windows[name]
        window.total = at_home(name, window.total, gradient)
        window.last = window.last.to(gradient.device)
        return window

    def state(self) -> dict[str, Any]:
        """The windows as far as they are filled."""
        return {
            name: {"last": window.last[: window.seen], "total": window.total, "seen": window.seen}
            for name, window in self._windows.items()
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take them over; the rest of each is made again."""
        self._windows = {}
        for name, saved in state.items():
            total = saved["total"]
            last = torch.zeros(self._size, *total.shape, dtype=total.dtype)
            last[: saved["seen"]] = saved["last"]
            self._windows[name] = _Window(last, total, saved["seen"])


def wide(gradient: Tensor) -> Tensor:
    """A copy in float32, or in the gradient's own type where that is wider."""
    return gradient.to(torch.promote_types(gradient.dtype, torch.float32), copy=True)


def at_home(name: str, kept: Tensor, gradient: Tensor) -> Tensor:
    """What is kept, where the gradient is: what comes from a checkpoint is on the CPU at first.

    Raises:
        RunError: the weight has another shape than in the checkpoint.
    """
    if kept.shape != gradient.shape:
        shapes = f"{list(kept.shape)} in the checkpoint, {list(gradient.shape)} now"
        raise RunError(f"grokfast: the average of the gradients of {name} has another shape: {shapes}")
    return kept.to(gradient.device)
