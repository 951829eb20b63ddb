"""The options of Liger's kernels, and the plugin that puts them into the model and into the loss."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dumbo.config.schema import RunConfig
from dumbo.config.section import Section
from dumbo.errors import ConfigError, Problem
from dumbo.plugin_loader import BasePlugin, LossPlugin, Phase

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dumbo.job import Loss

KERNELS = ("rope", "rms_norm", "layer_norm", "glu_activation")
DEVICE_FILES = ("nvidia[0-9]*", "nvidiactl", "kfd", "dxg", "dri/renderD*", "davinci[0-9]*")
"""What Linux has in /dev for NVIDIA, AMD, Windows' subsystem, Intel (and others), Ascend."""


class LigerOptions(Section):
    """Kernels of Liger. An unset kernel is used where Liger has it for the model; what took effect is printed."""

    rope: bool | None = None
    """Rotary positions of queries and keys in one kernel."""
    rms_norm: bool | None = None
    """RMSNorm in one kernel, which keeps fewer activations."""
    layer_norm: bool | None = None
    """LayerNorm in one kernel; of the models with text alone few have any."""
    glu_activation: bool | None = None
    """The gated activation of the feed-forward layers (SwiGLU, GEGLU) in one kernel, which keeps fewer activations."""
    cross_entropy: bool = False
    """The loss in one kernel on the logits, which become their own gradient. Works with every model."""
    fused_linear_cross_entropy: bool = False
    """The loss together with the output head, for a few rows at a time: the logits, the largest tensor of a training
    step, are never held as a whole. For every model whose head is one linear layer."""
    use_token_scaling: bool = False
    """Multiply the loss of each token by its predicted probability, without gradient through it: tokens that the model
    finds unlikely count less. Evaluation stays as it is. Needs fused_linear_cross_entropy."""


class LigerPlugin(BasePlugin):
    """Puts Liger's kernels into the model. Computes the loss, unless another plugin does."""

    name = "liger"
    section = "model.liger"
    options_type = LigerOptions
    packages = ("liger_kernel",)
    phase = Phase.KERNELS
    yields: frozenset[type] = frozenset({LossPlugin})  # type: ignore[misc]
    consumes: frozenset[str] | None = frozenset({"trainer.arguments.label_smoothing_factor"})  # type: ignore[misc]

    options: LigerOptions

    @property
    def columns(self) -> frozenset[str]:
        """The weights of rows are read by the loss that every run has, and not by Liger's kernels."""
        is_own = self.options.cross_entropy or self.options.fused_linear_cross_entropy
        return frozenset() if is_own else frozenset({"weights"})

    def check(self, config: RunConfig) -> None:
        """Refuse options that exclude each other, and machines on which no kernel runs."""
        problems = [*_option_problems(self.options, config, LossPlugin in self.seats)]
        problems += _machine_problems(config)
        if problems:
            raise ConfigError(problems)

    def patch_model(self, model: PreTrainedModel, config: RunConfig) -> PreTrainedModel:
        """Return the model with the kernels in it. Raises ConfigError for one that does not fit it."""
        from dumbo.plugins.liger.kernels import apply_kernels

        return apply_kernels(model, self.options, self.services.say)

    def build_loss(self, config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> Loss:
        """Return the loss that the options name; without any, the one that every run has."""
        from dumbo.plugins.liger.loss import build_loss

        return build_loss(self.options, config.trainer.arguments.label_smoothing_factor, self.services.say)


def _option_problems(options: LigerOptions, config: RunConfig, has_seat: bool) -> Iterator[Problem]:
    asked = [name for name in ("cross_entropy", "fused_linear_cross_entropy") if getattr(options, name)]
    if len(asked) == 2:
        yield _problem("cross_entropy", "cannot be combined with fused_linear_cross_entropy", "set one of them")
    if options.use_token_scaling and not options.fused_linear_cross_entropy:
        message = "needs fused_linear_cross_entropy: true"
        yield _problem("use_token_scaling", message, "set it, or leave use_token_scaling out")
    if asked and not has_seat:
        message = "another plugin computes the loss, so this would have no effect"
        yield _problem(asked[0], message, "remove one of them")
    if config.trainer.arguments.torch_compile and options.fused_linear_cross_entropy:
        message = "cannot be compiled"
        yield _problem(
            "fused_linear_cross_entropy", message, "remove trainer.arguments.torch_compile, or set cross_entropy: true"
        )
    if not asked and all(getattr(options, name) is False for name in KERNELS):
        hint = "remove 'liger' from plugins, or switch one of its options on"
        yield Problem("every kernel is switched off", ("model", "liger"), hints=(hint,))


def _machine_problems(config: RunConfig) -> Iterator[Problem]:
    if os.environ.get("TRITON_INTERPRET") == "1":
        return  # Triton's interpreter runs kernels on the CPU, slowly: for tests.
    if config.trainer.arguments.use_cpu:
        message = "'liger' needs a GPU, and trainer.arguments.use_cpu is set"
        yield Problem(message, ("plugins",), hints=("remove 'liger' from plugins",))
    elif not _has_gpu():
        message = "'liger' needs a GPU, and this machine has none that PyTorch can use"
        yield Problem(message, ("plugins",), hints=("remove 'liger' from plugins",))


def _has_gpu() -> bool:
    # PyTorch takes seconds to import; a machine without any such file need not wait for its answer.
    if sys.platform == "linux" and not any(any(Path("/dev").glob(pattern)) for pattern in DEVICE_FILES):
        return False
    import torch

    return torch.cuda.is_available() or torch.xpu.is_available() or _has_npu(torch)


def _has_npu(torch: object) -> bool:
    npu = getattr(torch, "npu", None)
    return npu is not None and bool(npu.is_available())


def _problem(option: str, message: str, *hints: str) -> Problem:
    return Problem(message, ("model", "liger", option), hints=hints)
