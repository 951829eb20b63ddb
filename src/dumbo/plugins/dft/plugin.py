"""The options of Dynamic Fine-Tuning, and the plugin that weighs tokens by it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from dumbo.config.schema import RunConfig
from dumbo.config.section import Section
from dumbo.plugin_loader import TokenWeightPlugin

if TYPE_CHECKING:
    from dumbo.job import TokenWeights


class DftOptions(Section):
    """Dynamic Fine-Tuning: the loss of each token times its predicted probability."""

    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    """Power of the probability: 1 is Dynamic Fine-Tuning; towards 0 the training comes near to plain cross entropy, and
    with more than 1 unlikely tokens count still less."""


class DftPlugin(TokenWeightPlugin):
    """Multiplies the loss of each token by its predicted probability; evaluation stays as it is."""

    name = "dft"
    section = "trainer.dft"
    options_type = DftOptions

    options: DftOptions

    def build_token_weights(self, config: RunConfig) -> TokenWeights:
        """Return what makes weights of log-probabilities."""
        from dumbo.plugins.dft.weights import probability_weights

        return probability_weights(self.options.alpha)
