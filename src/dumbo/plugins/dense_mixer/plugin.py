"""The options of router gradients from all experts, and the plugin that makes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from dumbo.config.schema import RunConfig
from dumbo.config.section import Section
from dumbo.errors import ConfigError
from dumbo.plugin_loader import BasePlugin, Phase

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DenseMixerOptions(Section):
    """Gradients for the routers of a mixture of experts from all experts, not only from those that they chose."""

    pairs_at_a_time: Annotated[int, Field(ge=1)] = 8192
    """Pairs of a token and an expert that was not chosen for it, computed at the same time in the backward pass. Fewer
    take less memory."""


class DenseMixerPlugin(BasePlugin):
    """Trains routers with straight-through gradients; what the model computes stays as it is."""

    name = "dense_mixer"
    section = "model.dense_mixer"
    options_type = DenseMixerOptions
    phase = Phase.KERNELS
    after = frozenset({"liger", "lora_kernels"})  # what they changed is then looked at

    options: DenseMixerOptions

    def check(self, config: RunConfig) -> None:
        """Refuse what it cannot work with."""
        if config.trainer.arguments.torch_compile:
            message = "cannot be combined with 'dense_mixer', which a compiler cannot look into"
            raise ConfigError.at("trainer.arguments.torch_compile", message, "remove one of them")

    def load_kwargs(self, config: RunConfig) -> Mapping[str, Any]:
        """Return the name of the implementation of experts, which Transformers then knows."""
        from dumbo.plugins.dense_mixer.experts import register

        return {"experts_implementation": register()}

    def patch_model(self, model: PreTrainedModel, config: RunConfig) -> PreTrainedModel:
        """Return the model with its routers watched. Raises ConfigError for one whose routers are not known."""
        from dumbo.plugins.dense_mixer.attaching import add_dense_mixer

        patched: PreTrainedModel = add_dense_mixer(model, self.options.pairs_at_a_time, self.services.say)
        return patched
