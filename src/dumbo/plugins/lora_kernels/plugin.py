"""The options of the kernels for LoRA, and the plugin that puts them into the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dumbo.config.schema import RunConfig
from dumbo.config.section import Section
from dumbo.errors import ConfigError, Problem
from dumbo.plugin_loader import ModelPatcherPlugin, Phase

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LoraKernelsOptions(Section):
    """Layers with LoRA that keep fewer activations for the backward pass, and compute the same."""

    mlp: bool | None = None
    """Gated feed-forward blocks, down(act(gate(x)) * up(x)), each as one function that keeps about half. By default
    where the model has such blocks; true insists."""
    linear: bool | None = None
    """All other linear layers with LoRA, such as queries, keys, values and outputs of the attention, each by itself. By
    default where there are any; true insists."""


class LoraKernelsPlugin(ModelPatcherPlugin):
    """Puts the kernels in the place of what PEFT's layers compute in training."""

    name = "lora_kernels"
    section = "model.lora_kernels"
    options_type = LoraKernelsOptions
    phase = Phase.KERNELS
    requires = frozenset({"peft"})
    after = frozenset({"liger"})  # it replaces whole blocks, whatever their layers compute

    options: LoraKernelsOptions

    def check(self, config: RunConfig) -> None:
        """Refuse what excludes each other."""
        problems = list(_problems(self.options, config))
        if problems:
            raise ConfigError(problems)

    def patch_model(self, model: PreTrainedModel, config: RunConfig) -> PreTrainedModel:
        """Return the model with the kernels in it. Raises ConfigError where they do not fit."""
        from dumbo.plugins.lora_kernels.fusing import fuse

        patched: PreTrainedModel = fuse(model, self.options, self.services.say)
        return patched


def _problems(options: LoraKernelsOptions, config: RunConfig) -> Iterator[Problem]:
    if options.mlp is False and options.linear is False:
        hints = ("remove 'lora_kernels' from plugins, or switch one of them on",)
        yield Problem("every kernel is switched off", ("model", "lora_kernels"), hints=hints)
    if config.trainer.arguments.torch_compile:
        message = "cannot be combined with 'lora_kernels', which a compiler cannot look into"
        path = ("trainer", "arguments", "torch_compile")
        yield Problem(message, path, hints=("remove one of them",))
