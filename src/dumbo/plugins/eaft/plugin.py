"""The options of Entropy-Adaptive Fine-Tuning, and the plugin that weighs tokens by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from dumbo.config.schema import RunConfig
from dumbo.config.section import Section
from dumbo.plugin_loader import TokenWeightPlugin

if TYPE_CHECKING:
    from dumbo.job import TokenWeights


class EaftOptions(Section):
    """Entropy-Adaptive Fine-Tuning: the loss of each token times the entropy of its prediction, from 0 to 1."""

    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Power of the entropy: more than 1 leaves less of what the model is rather sure about, less than 1 more."""
    top_k: Annotated[int, Field(ge=2)] = 20
    """Of so many of the likeliest tokens the entropy is taken, and divided by its logarithm, the most that it can
    be."""


class EaftPlugin(TokenWeightPlugin):
    """Multiplies the loss of each token by the entropy of its prediction; evaluation stays as it is."""

    name = "eaft"
    section = "trainer.eaft"
    options_type = EaftOptions

    options: EaftOptions

    def build_token_weights(self, config: RunConfig) -> TokenWeights:
        """Return what makes weights of logits."""
        from dumbo.plugins.eaft.weights import entropy_weights

        return entropy_weights(self.options.alpha, self.options.top_k)
