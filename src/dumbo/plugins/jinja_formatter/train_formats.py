"""Tokens and labels from conversations: the formats `jinja_messages` and `chat_template`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dumbo.data.masking import Span, label_tokens
from dumbo.data.records import IGNORED, Conversation, Example, Record
from dumbo.errors import ConfigError
from dumbo.plugins.jinja_formatter.encoding import OffsetEncoder, leading_special_tokens
from dumbo.plugins.jinja_formatter.rendering import ChatTemplateRenderer, Rendered, Renderer, TemplateRenderer
from dumbo.plugins.jinja_formatter.turns import AssistantTurns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dumbo.plugins.jinja_formatter.plugin import ChatTemplateOptions, JinjaMessagesOptions


class JinjaMessages:
    """Renders a template of the user's, between the special tokens that a plain text has."""

    def __init__(self, options: JinjaMessagesOptions, tokenizer: PreTrainedTokenizerBase) -> None:
        if tokenizer.eos_token is None or tokenizer.eos_token_id is None:
            message = "the tokenizer has no end token, which 'jinja_messages' puts after each text"
            raise ConfigError.at("model.tokenizer.eos_token", message)
        self.end, self.end_id = str(tokenizer.eos_token), int(tokenizer.eos_token_id)
        # At inference the tokenizer puts them before a prompt, so they are there in training too.
        self.start_ids = leading_special_tokens(tokenizer)
        self.encoder = OffsetEncoder(tokenizer)
        self.renderer = TemplateRenderer(options.template, tokenizer)
        self.turns = None if options.train_on_inputs else AssistantTurns(self.renderer, tokenizer)

    def __call__(self, record: Record) -> Example:
        """Return tokens and labels. Raises `DataError` for a record that gives no text or nothing to train on."""
        conversation = _conversation(record, "jinja_messages")
        text = _render(self.renderer, conversation).text
        if not text:
            raise conversation.origin.error("the template writes nothing", "check that it loops over 'messages'")
        spans = self.turns.locate(conversation, text) if self.turns else [(0, len(text))]
        ends_itself = text.rstrip().endswith(self.end)
        answers_last = not text[spans[-1][1] :].strip()
        if answers_last and not ends_itself:
            # To get to the end token the model has to write the whitespace before it.
            spans[-1] = (spans[-1][0], len(text))
        input_ids, offsets = self.encoder.encode(text)
        labels = label_tokens(input_ids, offsets, spans)
        if not ends_itself:
            input_ids.append(self.end_id)
            labels.append(self.end_id if answers_last else IGNORED)
        if input_ids[: len(self.start_ids)] != self.start_ids:
            start_labels = [IGNORED] * len(self.start_ids) if self.turns else self.start_ids
            input_ids, labels = [*self.start_ids, *input_ids], [*start_labels, *labels]
        return _example(conversation, input_ids, labels)


class ChatTemplate:
    """Renders the tokenizer's chat template, which writes all special tokens itself."""

    def __init__(self, options: ChatTemplateOptions, tokenizer: PreTrainedTokenizerBase) -> None:
        self.renderer = ChatTemplateRenderer(tokenizer, options.chat_template_kwargs)
        self.encoder = OffsetEncoder(tokenizer)
        self.turns = None if options.train_on_inputs else AssistantTurns(self.renderer, tokenizer)

    def __call__(self, record: Record) -> Example:
        """Return tokens and labels. Raises `DataError` for a record that gives no text or nothing to train on."""
        conversation = _conversation(record, "chat_template")
        rendered = _render(self.renderer, conversation)
        input_ids, offsets = self.encoder.encode(rendered.text)
        return _example(conversation, input_ids, label_tokens(input_ids, offsets, self._spans(conversation, rendered)))

    def _spans(self, conversation: Conversation, rendered: Rendered) -> list[Span]:
        if self.turns is None:
            return [(0, len(rendered.text))]
        if rendered.generated is not None:
            return list(rendered.generated)
        return self.turns.locate(conversation, rendered.text)


def _conversation(record: Record, name: str) -> Conversation:
    """The record as a conversation of texts. Raises `DataError` for any other."""
    if not isinstance(record, Conversation):
        raise record.origin.error(
            f"'{name}' takes conversations, and the data format makes a {type(record).__name__}",
            "choose a data format that makes conversations, such as 'messages' or 'alpaca'",
        )
    for number, message in enumerate(record.messages, start=1):
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise record.origin.error(f"message {number} needs 'role' and 'content' as text")
    return record


def _render(renderer: Renderer, conversation: Conversation) -> Rendered:
    """The text of the conversation. Raises `DataError` with what the template says against it."""
    try:
        return renderer.render(conversation.messages, conversation.tools)
    except ConfigError:
        raise
    except Exception as error:  # Templates run arbitrary expressions on what they are given.
        raise conversation.origin.error(f"the template refuses the conversation: {error}") from None


def _example(conversation: Conversation, input_ids: list[int], labels: list[int]) -> Example:
    """The example. Raises `DataError` where no token is trained; the first never is, as nothing predicts it."""
    if all(label == IGNORED for label in labels[1:]):
        message = "no token to train on"
        hint = "what the assistant says is empty, or the template does not write or mark it"
        raise conversation.origin.error(message, hint)
    return Example(input_ids, labels, conversation.origin)
