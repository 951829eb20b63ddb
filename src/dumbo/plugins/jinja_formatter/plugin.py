"""The options of the formats, and the plugin that builds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from dumbo.config.schema import FormatOptions, RunConfig
from dumbo.errors import ConfigError, Problem, key_path
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

    def check(self, config: RunConfig) -> None:
        """Refuse two chat templates in a run: the model is saved with one."""
        chosen = config.model.tokenizer.chat_template
        first, problems = ("model.tokenizer.chat_template", chosen) if chosen is not None else None, []
        for index, entry in enumerate(config.datasets):
            options = entry.train_format
            template = options.chat_template if isinstance(options, ChatTemplateOptions) else None
            if template is None:
                continue
            key = f"datasets.{index}.train_format.chat_template"
            first = first or (key, template)
            if _text_of(template) != _text_of(first[1]):
                hint = "the model is saved with one template: write it under model.tokenizer, or the same everywhere"
                problems.append(Problem(f"another template than {first[0]}", key_path(key), hints=(hint,)))
        if problems:
            raise ConfigError(problems)

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


def _text_of(template: str) -> str:
    """The text of a template, whichever way it is named; one that cannot be read is another's problem."""
    from dumbo.tokenizers.section import read_template

    try:
        return read_template(template)
    except (OSError, UnicodeDecodeError):
        return template
