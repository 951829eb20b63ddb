"""The train formats `jinja_messages` and `chat_template`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from dumbo.chat.end_tokens import AnswerFrame, writes_token
from dumbo.chat.formatter import Additions, ConversationFormatter
from dumbo.chat.names import TEMPLATES, template_text
from dumbo.chat.rendering import Renderer, TemplateRenderer, chat_renderers
from dumbo.chat.selection import TrainedParts
from dumbo.data.encoding import leading_special_tokens
from dumbo.data.masking import Span
from dumbo.data.records import IGNORED
from dumbo.errors import ConfigError
from dumbo.tokenizers.section import read_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dumbo.plugins.jinja_formatter.train_options import ChatTemplateOptions, JinjaMessagesOptions, TrainedOptions


class ChatTemplate(ConversationFormatter):
    """Writes by a chat template, which writes all special tokens itself."""

    def __init__(self, options: ChatTemplateOptions, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises `ConfigError` for a tokenizer without template or offsets, and for end tokens that are not written."""
        chosen = read_template(options.chat_template) if options.chat_template is not None else None
        renderers = chat_renderers(tokenizer, options.chat_template_kwargs, chosen)
        self.chat_template = renderers[0].template
        super().__init__(
            "chat_template",
            renderers,
            tokenizer,
            _parts(options, options.train_on_inputs),
            _checked_ends(options, tokenizer, renderers),
            options.allow_special_tokens,
        )
        ends = dict.fromkeys(warning for frame in self.frames for warning in _frame_warnings(frame))
        self.warnings = [*_split_tokens(self.chat_template, tokenizer), *ends]


class JinjaMessages(ConversationFormatter):
    """Writes by a template of the user's, between the special tokens that a plain text has."""

    writes_all: ClassVar[bool] = False

    def __init__(self, options: JinjaMessagesOptions, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raises `ConfigError` for a tokenizer without end token or offsets."""
        if tokenizer.eos_token is None or tokenizer.eos_token_id is None:
            message = "the tokenizer has no end token, which 'jinja_messages' puts after each text"
            raise ConfigError.at("model.tokenizer.eos_token", message)
        self.end, self.end_id = str(tokenizer.eos_token), int(tokenizer.eos_token_id)
        # At inference the tokenizer puts them before a prompt, so they are there in training too.
        self.start_ids = leading_special_tokens(tokenizer)
        renderer = TemplateRenderer(options.template, tokenizer)
        parts = _parts(options, options.train_on_inputs)
        renderers = renderer, renderer
        ends = _checked_ends(options, tokenizer, renderers)
        super().__init__("jinja_messages", renderers, tokenizer, parts, ends, options.allow_special_tokens)

    def trained_spans(self, text: str, spans: list[Span]) -> list[Span]:
        """To get to the end token the model has to write the whitespace before it."""
        if self.parts.end_of_text == "none" or not self._ends_with_answer(text, spans):
            return spans
        return [*spans[:-1], (spans[-1][0], len(text))]

    def additions(self, text: str, spans: Sequence[Span], input_ids: Sequence[int]) -> Additions:
        """The tokens of a plain text's beginning, and the end token, as far as the template does not write them."""
        tail: list[int] = []
        tail_labels: list[int] = []
        if not self._ends_itself(text):
            is_trained = self.parts.end_of_text == "all" or self._ends_with_answer(text, spans)
            tail = [self.end_id]
            tail_labels = [self.end_id if is_trained and self.parts.end_of_text != "none" else IGNORED]
        lead = self._missing_start([*input_ids[: len(self.start_ids)], *tail])
        return Additions(lead, lead if self.parts.whole_text else [IGNORED] * len(lead), tail, tail_labels)

    def _with_start(self, input_ids: list[int]) -> list[int]:
        return [*self._missing_start(input_ids), *input_ids]

    def _missing_start(self, input_ids: list[int]) -> list[int]:
        return [] if input_ids[: len(self.start_ids)] == self.start_ids else self.start_ids

    def _ends_itself(self, text: str) -> bool:
        return text.rstrip().endswith(self.end)

    def _ends_with_answer(self, text: str, spans: Sequence[Span]) -> bool:
        """Whether the end token that the format adds follows what is trained."""
        return not self._ends_itself(text) and bool(spans) and not text[spans[-1][1] :].strip()


def _frame_warnings(frame: AnswerFrame) -> Iterator[str]:
    """What is doubtful about how a chat template begins and ends answers."""
    if frame.renders_answers and frame.generation_prompt and not frame.begins_answers:
        yield (
            f"prompts of inference end in {frame.generation_prompt!r}, which answers without a thought do not "
            "begin with in the chat template: the model is asked for what it was not trained on"
        )
    if not frame.renders_answers or frame.writes_end_of_text:
        return
    if not frame.end_of_turn:
        yield "the chat template writes nothing after an answer: the model will not learn to stop"
    else:
        end = frame.end_of_turn[0]
        yield (
            f"the chat template ends answers in '{end}' and never writes the tokenizer's end token "
            f"'{frame.end_of_text}'; programs that wait for that one do not stop: "
            f'model.tokenizer.eos_token: "{end}"'
        )


def _parts(options: TrainedOptions, whole_text: bool) -> TrainedParts:
    return TrainedParts(
        roles=frozenset(options.roles_to_train),
        whole_text=whole_text,
        end_of_text=options.train_on_eos,
        end_of_turn=options.train_on_eot,
        hidden_thinking=options.hidden_thinking,
    )


def _checked_ends(
    options: TrainedOptions, tokenizer: PreTrainedTokenizerBase, renderers: Sequence[Renderer]
) -> tuple[str, ...]:
    """The user's tokens that end turns. Raises `ConfigError` for one that is no token, or that is never written."""
    for place, token in enumerate(options.eot_tokens):
        where = f".eot_tokens.{place}"
        ids = tokenizer(token, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            hint = "add it to model.tokenizer.special_tokens, or choose another"
            raise ConfigError.at(where, f"'{token}' is {len(ids)} tokens of this tokenizer, not one", hint)
        if not any(writes_token(renderer, token) for renderer in renderers):
            raise ConfigError.at(where, f"the template never writes '{token}' after an answer")
    modes = {options.train_on_eos, options.train_on_eot} - {None}
    if tokenizer.eos_token in options.eot_tokens and len(modes) > 1:
        message = f"'{tokenizer.eos_token}' is the end token too, for which 'train_on_eos' says something else"
        raise ConfigError.at(".train_on_eot", message, "write the same for both, or one of them")
    return options.eot_tokens


def _split_tokens(template: str, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """A warning where a named template writes special tokens that the tokenizer does not know."""
    name = next((name for name in TEMPLATES if template_text(name) == template), None)
    needed = TEMPLATES[name].needs if name is not None else ()
    unknown = [token for token in needed if len(tokenizer(token, add_special_tokens=False)["input_ids"]) != 1]
    if unknown:
        tokens = ", ".join(f'"{token}"' for token in unknown)
        yield (
            f"the template '{name}' writes tokens that this tokenizer does not know and splits into several; "
            f"add them: model.tokenizer.special_tokens: [{tokens}]"
        )
