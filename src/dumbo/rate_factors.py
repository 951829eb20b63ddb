"""Gathers who wants other learning rates for which weights."""

from __future__ import annotations

from dumbo.configure import Configured
from dumbo.errors import ConfigError
from dumbo.job import RateFactor
from dumbo.plugin_loader import LearningRatePlugin, OptimizerPlugin


def collect_rate_factors(configured: Configured) -> list[RateFactor]:
    """The factors of the configuration and of plugins; of the configuration none where a plugin makes the optimizer,
    which answers for that key.

    Raises:
        ConfigError: a plugin wants some where another one makes the optimizer.
    """
    plugins, config = configured.plugins, configured.config
    makers = plugins.names(OptimizerPlugin)
    own = {} if makers else config.trainer.arguments.learning_rate_factors
    found = [RateFactor(pattern, factor) for pattern, factor in own.items()]
    for name, factors in plugins.call_each(LearningRatePlugin, config):
        if factors and makers:
            message = f"'{name}' gives some weights another learning rate, and '{makers[0]}' makes the optimizer"
            raise ConfigError.at("plugins", message, f"remove '{makers[0]}', or what asks '{name}' for it")
        found += [RateFactor(pattern, factor, name) for pattern, factor in factors.items()]
    return found
