"""Text of messages: by a template of the user's, or by the tokenizer's chat template."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dumbo.data.masking import Span
from dumbo.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]

SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
VARIABLES = ("messages", "tools", "add_generation_prompt", *SPECIAL_TOKENS)
"""What a template of the user's is given."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """Text of a conversation; `generated` are the spans that the template marks as the assistant's, if it marks any."""

    text: str
    generated: tuple[Span, ...] | None = None


class Renderer(Protocol):
    """Makes text of messages; it raises whatever the template raises."""

    def render(
        self, messages: Sequence[Message], tools: Sequence[Message], generation_prompt: bool = False
    ) -> Rendered:
        """Return the text of the conversation, followed by the header of an answer where `generation_prompt` is set."""
        ...


class _Unwritten(jinja2.StrictUndefined):
    """What a template has no value for: it may be asked for (`{% if message.name %}`), not written or looped over."""

    def __bool__(self) -> bool:  # type: ignore[override]
        return False


def _environment() -> ImmutableSandboxedEnvironment:
    """The environment of Transformers' chat templates, so that their text can be used here, with strict variables."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, undefined=_Unwritten, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    return environment


@lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    """The template, ready to render. Kept here, so that what holds its text alone renders fast and can be pickled."""
    return _environment().from_string(template)


def _to_json(value: Any, indent: int | None = None) -> str:
    """JSON as it is: Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def check_template(template: str) -> None:
    """Raise `ValueError` for a template that is not Jinja, or that reads a variable which it will never be given."""
    try:
        tree = _environment().parse(template)
        # Filters and tests are looked up by the compiler, not by the parser.
        _compiled(template)
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"line {error.lineno}: {error.message}") from None
    tested = {test.node.name for test in tree.find_all(nodes.Test) if isinstance(test.node, nodes.Name)}
    unknown = sorted(meta.find_undeclared_variables(tree) - set(VARIABLES) - tested - set(_environment().globals))
    if unknown:
        near = get_close_matches(unknown[0], VARIABLES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(VARIABLES)}"
        raise ValueError(f"the template reads '{unknown[0]}', which it is not given; {hint}")


class TemplateRenderer:
    """Renders a template of the user's."""

    def __init__(self, template: str, tokenizer: PreTrainedTokenizerBase) -> None:
        self.template = template
        tokens = tokenizer.special_tokens_map
        self.tokens = {name: str(tokens[name]) for name in SPECIAL_TOKENS if name in tokens}

    def render(
        self, messages: Sequence[Message], tools: Sequence[Message], generation_prompt: bool = False
    ) -> Rendered:
        """Return the text of the conversation."""
        variables = {**self.tokens, "tools": list(tools) or None, "add_generation_prompt": generation_prompt}
        text = _compiled(self.template).render(messages=[dict(message) for message in messages], **variables)
        return Rendered(text)


class ChatTemplateRenderer:
    """Renders the tokenizer's chat template, as `apply_chat_template` does.

    Raises `ConfigError` for a tokenizer without one, or with one that is broken or does not read all of `variables`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any]) -> None:
        self.tokenizer = tokenizer
        self.variables = {**tokenizer.special_tokens_map, **variables}
        template = self._template(())
        for name in variables:
            if not re.search(rf"\b{re.escape(name)}\b", template):
                message = f"the chat template does not read '{name}' of 'chat_template_kwargs'"
                raise ConfigError.at(f".chat_template_kwargs.{name}", message)
        try:
            self.render([{"role": "user", "content": ""}], ())
        except jinja2.TemplateSyntaxError as error:
            message = f"the chat template is broken: line {error.lineno}: {error.message}"
            raise ConfigError.at("model.tokenizer.chat_template", message) from None
        except Exception:
            # Broken only for this made-up conversation, perhaps: rows are judged by themselves.
            return

    def _template(self, tools: Sequence[Message]) -> str:
        """The text of the template: tokenizers may have several, one of them for conversations with tools."""
        try:
            return str(self.tokenizer.get_chat_template(tools=[dict(tool) for tool in tools] or None))
        except ValueError:
            message = "the tokenizer has no chat template"
            hint = "set it, or use a train format with a template of its own, such as 'jinja_messages'"
            raise ConfigError.at("model.tokenizer.chat_template", message, hint) from None

    def render(
        self, messages: Sequence[Message], tools: Sequence[Message], generation_prompt: bool = False
    ) -> Rendered:
        """Return the text of the conversation, with the spans of `{% generation %}` blocks if the template has any."""
        from transformers.utils.chat_template_utils import render_jinja_template

        template = self._template(tools)
        marked = re.search(r"{%-?\s*generation\s*-?%}", template) is not None
        # The function below `apply_chat_template`, which gives the spans of blocks in characters. The tokens that
        # `return_assistant_tokens_mask` gives include those which only begin in a block, and for a block that ends in a
        # character without a token all others to the end of the conversation.
        rendered: Any = render_jinja_template(
            conversations=[[{key: value for key, value in m.items() if value is not None} for m in messages]],
            tools=[dict(tool) for tool in tools] or None,
            chat_template=template,
            return_assistant_tokens_mask=marked,
            add_generation_prompt=generation_prompt,
            **self.variables,
        )
        texts, spans = rendered
        return Rendered(texts[0], tuple(spans[0]) if marked else None)
