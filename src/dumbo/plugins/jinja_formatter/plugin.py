"""The options of the formats, and the plugin that builds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from dumbo.config.schema import FormatOptions
from dumbo.plugin_loader import DataFormatPlugin, TrainFormatPlugin

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dumbo.data.records import DataFormat, TrainFormat

FILLED_IN = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversations",
        "documents",
        "messages",
        "return_assistant_tokens_mask",
        "tools",
    }
)
"""What Transformers gives to chat templates, or takes for itself, under these names."""


class AlpacaOptions(FormatOptions):
    """Rows with an instruction, perhaps an input, and an output: a question of the user and its answer."""

    field_instruction: str = "instruction"
    """Column with the instruction."""
    field_input: str = "input"
    """Column with what the instruction is about; it may be empty, null, or (unless this option is written) absent."""
    field_output: str = "output"
    """Column with the answer; a row where it is empty cannot be used."""
    prompt: Literal["alpaca", "plain"] = "alpaca"
    """What the user says: Alpaca's text with its headings, or instruction and input alone, as chat models like it."""


class MessagesOptions(FormatOptions):
    """Rows with a list of messages, each with `role` and `content`."""

    field_messages: str = "messages"
    """Column with the messages. Other keys of a message go to the template too; those that are null are left out."""
    field_tools: str = "tools"
    """Column with the tools' schemas; it may be empty, null, or (unless this option is written) absent."""


class JinjaMessagesOptions(FormatOptions):
    """A template of your own makes the text; the tokenizer's end token follows unless the template wrote it."""

    template: str
    """Jinja template, given `messages`, `tools`, `bos_token`, `eos_token` and the tokenizer's other special tokens."""
    train_on_inputs: bool = True
    """Train on the whole text; false trains on what the assistant says and the end token after it."""

    @field_validator("template")
    @classmethod
    def _check_template(cls, template: str) -> str:
        """Report a template that is broken, or that reads what it is not given, before anything is loaded."""
        from dumbo.plugins.jinja_formatter.rendering import check_template

        check_template(template)
        return template


class ChatTemplateOptions(FormatOptions):
    """The tokenizer's chat template makes the text; trained is what the assistant says, with the end of its turns."""

    train_on_inputs: bool = False
    """Train on the whole text, what system and user say included."""
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """More variables for the chat template, e.g. `{enable_thinking: false}`; one that it does not read is an error."""

    @field_validator("chat_template_kwargs")
    @classmethod
    def _check_names(cls, variables: dict[str, Any]) -> dict[str, Any]:
        """Refuse names that the format itself fills in."""
        taken = sorted(FILLED_IN & set(variables))
        if taken:
            raise ValueError(f"'{taken[0]}' cannot be set here: the format fills it in")
        return variables

    @property
    def needs_chat_template(self) -> bool:
        """True: there is no default."""
        return True


class JinjaFormatterPlugin(DataFormatPlugin, TrainFormatPlugin):
    """Data formats `alpaca` and `messages`, train formats `jinja_messages` and `chat_template`."""

    name = "jinja_formatter"
    data_formats: ClassVar[Mapping[str, type[FormatOptions]]] = {
        "alpaca": AlpacaOptions,
        "messages": MessagesOptions,
    }
    train_formats: ClassVar[Mapping[str, type[FormatOptions]]] = {
        "jinja_messages": JinjaMessagesOptions,
        "chat_template": ChatTemplateOptions,
    }

    def build_data_format(self, options: Any) -> DataFormat:
        """Return the function that makes a conversation from a row."""
        from dumbo.plugins.jinja_formatter import data_formats

        if isinstance(options, AlpacaOptions):
            return data_formats.Alpaca(options)
        return data_formats.Messages(options)

    def build_train_format(self, options: Any, tokenizer: PreTrainedTokenizerBase) -> TrainFormat:
        """Return the function that makes tokens and labels from a conversation.

        Raises `ConfigError` for a tokenizer that lacks what the format needs: a chat template, an end token, offsets.
        """
        from dumbo.plugins.jinja_formatter import train_formats

        if isinstance(options, JinjaMessagesOptions):
            return train_formats.JinjaMessages(options, tokenizer)
        return train_formats.ChatTemplate(options, tokenizer)
