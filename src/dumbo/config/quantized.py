"""What every plugin that quantizes the base model asks of the rest of the configuration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dumbo.errors import Problem

if TYPE_CHECKING:
    from dumbo.config.schema import RunConfig


def adapter_problems(config: RunConfig) -> Iterator[Problem]:
    """What a quantized base model cannot be without: an adapter to train, and weights to quantize."""
    # A plugin of the user's own, named by its place, may put something to train on the model.
    if "peft" not in config.plugins and not any(":" in name for name in config.plugins):
        message = "quantized weights cannot be trained, and there is no adapter on them"
        yield Problem(
            message, ("plugins",), hints=("add peft, or load the model as it is to train all of its weights",)
        )
    if config.model.architecture:
        message = "random weights are quantized by nobody: there is nothing in them to keep"
        yield Problem(message, ("model", "architecture"), hints=("write model.base_model",))
