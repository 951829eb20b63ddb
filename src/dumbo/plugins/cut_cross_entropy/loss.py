"""The heavy half: which kernels compute the loss, and whether the model's head lets them."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from dumbo.bridge.head import HeadError, head_shape
from dumbo.bridge.loss_backends import UnfitError, apple_cross_entropy, liger_cross_entropy
from dumbo.bridge.token_loss import Compute, TokenLoss
from dumbo.config.schema import RunConfig
from dumbo.errors import ConfigError
from dumbo.kernels.linear_cross_entropy import LinearLoss, LossOptions, linear_cross_entropy
from dumbo.kernels.linear_logits import LinearLogits
from dumbo.plugins.cut_cross_entropy.plugin import PACKAGES, CutCrossEntropyOptions

_KERNELS: tuple[tuple[str, Compute], ...] = (("liger", liger_cross_entropy), ("apple", apple_cross_entropy))
"""In the order in which they are tried: the first adds gradients up in float32."""


def check_head(model: Any) -> Any:
    """The model.

    Raises:
        ConfigError: its head is not one linear layer, so that logits cannot be left out.
    """
    try:
        head_shape(model)
    except HeadError as error:
        raise ConfigError.at(
            "model.cut_cross_entropy", str(error), "remove 'cut_cross_entropy' from plugins"
        ) from error
    return model


def build_loss(options: CutCrossEntropyOptions, config: RunConfig, say: Callable[[str], None]) -> TokenLoss:
    """The loss that `options` describe."""
    terms = LossOptions(
        label_smoothing=config.trainer.arguments.label_smoothing_factor,
        z_loss=options.z_loss,
        gradient_filter=options.gradient_filter,
        tile_rows=options.tile_tokens,
        with_metrics=options.token_metrics,
    )
    compute: Compute = linear_cross_entropy
    if options.backend in PACKAGES:
        compute = _insisting(options.backend, dict(_KERNELS)[options.backend])
        say(f"cut_cross_entropy: computed by {options.backend}")
    elif options.backend == "auto" and options.tile_tokens is None:
        compute = _Best(say)
    return TokenLoss(terms, say, worthwhile_bytes=0, compute=compute)


def _insisting(name: str, compute: Compute) -> Compute:
    """`compute`, with what it cannot do told as an error of the configuration."""

    def call(logits: LinearLogits, targets: Tensor, options: LossOptions, weights: Tensor | None = None) -> LinearLoss:
        try:
            return compute(logits, targets, options, weights)
        except UnfitError as error:
            raise ConfigError.at("model.cut_cross_entropy.backend", str(error), "write torch, or auto") from error

    return call


class _Best:
    """The first of the kernels that is installed and can make the loss; they are for GPUs, and for 16 bits."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._chosen: Compute | None = None

    def __call__(
        self, logits: LinearLogits, targets: Tensor, options: LossOptions, weights: Tensor | None = None
    ) -> LinearLoss:
        if self._chosen is not None:
            return self._chosen(logits, targets, options, weights)
        compute = logits.dtype or logits.weights[0].dtype
        is_fit = targets.device.type == "cuda" and compute in (torch.bfloat16, torch.float16)
        for name, kernel in _KERNELS if is_fit else ():
            if find_spec(PACKAGES[name]) is None:
                continue
            try:
                found = kernel(logits, targets, options, weights)
            except UnfitError as error:
                self._say(f"cut_cross_entropy: not computed by {name}: {error}")
                continue
            self._choose(name, kernel)
            return found
        self._choose("torch", linear_cross_entropy)
        return linear_cross_entropy(logits, targets, options, weights)

    def _choose(self, name: str, kernel: Compute) -> None:
        self._chosen = kernel
        self._say(f"cut_cross_entropy: computed by {name}")
