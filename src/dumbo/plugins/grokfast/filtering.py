"""Filters the gradient of each step where the trainer lets it be changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from dumbo.plugins.grokfast.filters import ExponentialAverage, Filter, MovingAverage

if TYPE_CHECKING:
    from dumbo.plugins.grokfast.plugin import GrokfastOptions


class AmplifySlowGradients(TrainerCallback):
    """Once per step, with the gradient of all its passes; steps that are skipped never come here."""

    def __init__(self, options: GrokfastOptions, say: Callable[[str], None]) -> None:
        """`say` tells the user which filter there is, and what it takes."""
        self._options, self._say = options, say
        self._filter = make_filter(options)

    def on_train_begin(  # type: ignore[override]
        self, arguments: TrainingArguments, state: TrainerState, control: TrainerControl, **more: Any
    ) -> None:
        """Tell what is done, and what memory it takes."""
        trained = sum(local(weight).numel() for weight in more["model"].parameters() if weight.requires_grad)
        taken = self._filter.copies * trained * torch.float32.itemsize
        self._say(f"grokfast: {describe(self._options)}; it keeps {taken / 1e6:,.1f} MB of gradients in float32")

    def on_gradient(
        self, arguments: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module
    ) -> None:
        """Amplify the slow part of every gradient that there is."""
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                self._filter.apply(name, local(parameter.grad))

    def state(self) -> Mapping[str, Any]:
        """What a checkpoint keeps."""
        return {"filter": _kind(self._options), "kept": self._filter.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from there; another filter than then begins anew, and says so."""
        if state["filter"] == _kind(self._options):
            self._filter.load(state["kept"])
        else:
            self._say("grokfast: it was another filter in the checkpoint; its averages begin anew")


def make_filter(options: GrokfastOptions) -> Filter:
    """The filter that the options name."""
    if options.filter == "ema":
        return ExponentialAverage(options.alpha, options.factor)
    return MovingAverage(options.window_size, options.factor, options.average == "sum", options.warmup)


def describe(options: GrokfastOptions) -> str:
    """The filter in words, such as `ema with alpha 0.98, lamb 2`."""
    if options.filter == "ema":
        return f"ema with alpha {options.alpha:g}, lamb {options.factor:g}"
    warmup = "" if options.warmup else " from the first step on"
    return f"ma, {options.average} of {options.window_size} steps{warmup}, lamb {options.factor:g}"


def local(value: Tensor) -> Tensor:
    """What of a weight or gradient is on this process; its own memory, not a copy."""
    whole: Any = value
    mine: Tensor = whole.to_local() if hasattr(whole, "to_local") else value
    return mine


def _kind(options: GrokfastOptions) -> str:
    return options.filter if options.filter == "ema" else f"ma {options.window_size}"
