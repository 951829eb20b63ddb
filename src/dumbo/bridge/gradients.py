"""Lets callbacks change the whole gradient of an optimizer step, before it is clipped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dumbo.errors import RunError

if TYPE_CHECKING:
    from transformers import Trainer

EVENT = "on_gradient"
"""What such a callback has: `on_gradient(args, state, control, model)`, an event that Transformers does not know."""


def listeners(callbacks: Sequence[Any]) -> list[Any]:
    """Those callbacks that want to change gradients, in their order."""
    return [callback for callback in callbacks if callable(getattr(callback, EVENT, None))]


def change_gradients(trainer: Trainer, callbacks: Sequence[Any], model: nn.Module) -> Tensor:
    """Have `callbacks` change the gradients of `model`, clip them then, and return their norm before that.

    To be called once per optimizer step, when the gradients of all passes and processes are there, unscaled and finite.

    Raises:
        RunError: there are no gradients, as with an engine that keeps them to itself; or what the callbacks leave is
            not finite. Nothing can be saved then, as they have counted the step.
    """
    names = ", ".join(type(callback).__name__ for callback in callbacks)
    parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
    if not parameters:
        raise RunError(f"step {trainer.state.global_step + 1}: no weight has a gradient that {names} could change")
    for callback in callbacks:
        getattr(callback, EVENT)(trainer.args, trainer.state, trainer.control, model=model)
    # Not Accelerate's, which would divide by the scale of float16 a second time.
    limit = trainer.args.max_grad_norm
    norm = nn.utils.clip_grad_norm_(parameters, limit if limit > 0 else float("inf"))
    if not torch.isfinite(norm):
        raise RunError(f"step {trainer.state.global_step + 1}: the gradient is finite, and not so after {names}")
    return norm
