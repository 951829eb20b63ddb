"""The logits of a model for a loss of one's own: left to it where that can be."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from dumbo.bridge.head import HeadError, head_shape, keep_eager, leaving_logits
from dumbo.bridge.lazy_logits import LazyLogits
from dumbo.bridge.token_loss import insist_on_weights
from dumbo.job import Batch
from dumbo.kernels.linear_logits import LinearLogits


def logits_of(model: Any, inputs: Batch) -> LinearLogits | Tensor:
    """What would make the logits of `inputs`; they themselves, [sequences, tokens, vocabulary], where the model's head
    is not one linear layer, or the model needs their values.

    Raises:
        RunError: the head's weights are gone when they are needed, as with a wrong use of FSDP.
    """
    try:
        head_shape(model)
    except HeadError:
        held: Tensor = model(**inputs).logits
        return held
    keep_eager(model)
    with leaving_logits(model):
        left: Tensor = model(**inputs).logits
    if not isinstance(left, LazyLogits):
        return left
    if left.reason is not None:
        return left.values_of("the loss")
    insist_on_weights(left)
    return left.linear
