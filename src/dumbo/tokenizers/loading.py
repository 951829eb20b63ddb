"""The run's tokenizer, as the plugin in that seat loads it and others change it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumbo.inference.choosing import keep_generator
from dumbo.plugin_loader import TokenizerLoaderPlugin, TokenizerPatcherPlugin

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dumbo.config.schema import RunConfig
    from dumbo.plugin_manager import PluginManager


def load_run_tokenizer(
    plugins: PluginManager, config: RunConfig, model: PreTrainedModel | None
) -> PreTrainedTokenizerBase:
    """The tokenizer with all tokens that the run's plugins want in it; `model` is None where rows alone are looked at.

    Raises:
        DumboError: it cannot be loaded, or a plugin finds something wrong with it.
    """
    tokenizer: PreTrainedTokenizerBase = plugins.call_one(TokenizerLoaderPlugin, config, model=model)
    tokenizer = plugins.fold(TokenizerPatcherPlugin, tokenizer, config)
    keep_generator(tokenizer, plugins)
    return tokenizer
