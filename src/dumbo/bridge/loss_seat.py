"""The loss of a run, as plugins want it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from dumbo.bridge.counting import CountingLoss
from dumbo.bridge.token_loss import TokenLoss
from dumbo.errors import PluginError
from dumbo.kernels.linear_cross_entropy import LossOptions
from dumbo.plugin_loader import LossPlugin, TokenWeightPlugin
from dumbo.plugin_results import checked_loss, checked_token_weights

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dumbo.configure import Configured
    from dumbo.job import Loss


def build_loss(configured: Configured, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None]) -> Loss | None:
    """The loss of the plugin in that seat, which is blamed for what its loss returns; None where nobody wants another
    one than every run has.

    Raises:
        PluginError: a plugin weighs tokens, of which the loss of another knows nothing.
    """
    config, plugins = configured.config, configured.plugins
    loss: Loss | None = plugins.call_seat(LossPlugin, config, tokenizer)
    weigh = plugins.call_seat(TokenWeightPlugin, config)
    if weigh is not None:
        weigher = plugins.names(TokenWeightPlugin)[0]
        if loss is None:
            loss = TokenLoss(LossOptions(label_smoothing=config.trainer.arguments.label_smoothing_factor), say)
        if not isinstance(loss, TokenLoss):
            other = plugins.names(LossPlugin)[0]
            raise PluginError(
                f"the plugin '{weigher}' weighs tokens, and the loss of '{other}' takes no such weights\n"
                f"    remove one of the two, or let '{other}' compute no loss of its own"
            )
        loss.weigh(checked_token_weights(weigher, weigh))
    if loss is None or isinstance(loss, CountingLoss):
        return loss
    return checked_loss(plugins.names(LossPlugin)[0], loss)
