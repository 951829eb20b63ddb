"""The options of the formats, and the plugin that builds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from dumbo.config.schema import FormatOptions
from dumbo.plugin_loader import DataFormatPlugin, TrainFormatPlugin
from dumbo.plugins.jinja_formatter.data_options import DATA_FORMATS
from dumbo.plugins.jinja_formatter.train_options import ChatTemplateOptions, JinjaMessagesOptions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dumbo.data.records import DataFormat, TrainFormat


class JinjaFormatterPlugin(DataFormatPlugin, TrainFormatPlugin):
    """Data formats of conversations, train formats `jinja_messages` and `chat_template`."""

    name = "jinja_formatter"
    data_formats: ClassVar[Mapping[str, type[FormatOptions]]] = DATA_FORMATS
    train_formats: ClassVar[Mapping[str, type[FormatOptions]]] = {
        "jinja_messages": JinjaMessagesOptions,
        "chat_template": ChatTemplateOptions,
    }

    def build_data_format(self, options: Any) -> DataFormat:
        """Return the function that makes a conversation from a row."""
        from dumbo.plugins.jinja_formatter.data_formats import build_data_format

        return build_data_format(options)

    def build_train_format(self, options: Any, tokenizer: PreTrainedTokenizerBase) -> TrainFormat:
        """Return the function that makes tokens and labels from a conversation.

        Raises `ConfigError` for a tokenizer that lacks what the format needs: a chat template, an end token, offsets.
        """
        from dumbo.plugins.jinja_formatter import train_formats

        if isinstance(options, JinjaMessagesOptions):
            return train_formats.JinjaMessages(options, tokenizer)
        return train_formats.ChatTemplate(options, tokenizer)
