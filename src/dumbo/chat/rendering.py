"""Conversations rendered by a template, and what of the text came from which message."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jinja2

from dumbo.bridge.chat_templates import render_chat_template
from dumbo.chat.environment import (
    SPECIAL_TOKENS,
    Unwritten,
    compile_chat_template,
    compile_plain_template,
    compile_template,
    is_simple,
    marks_generation,
    read_variables,
    syntax_error,
)
from dumbo.chat.made_up import call, question
from dumbo.chat.traced import REWRITTEN, TOOLS, Field, runs_of, trace
from dumbo.chat.unseen import Outline, OutlineFinder
from dumbo.data.records import Message
from dumbo.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
"""Keys under which templates look for what an assistant thinks; Transformers fills the first two from any of them."""

HEADER_KEYS = frozenset({"name", "tool_call_id", "id"})
"""What templates write before a message, or not at all: no part of what it says."""

REASONING = REASONING_KEYS[0]
TOOL_CALLS = "tool_calls"


_NOT_FOLLOWED = "the template treats texts in a way that cannot be followed"
_FIRST_CHECKED = 100
_CHECKED_EVERY = 32


class UnprovenRenderingError(ValueError):
    """The text whose origin is known is not the text that the template writes."""


class Piece(NamedTuple):
    """Characters `[start, end)` of a rendered text that came from a message, or from the tools' schemas."""

    start: int
    end: int
    field: Field
    offset: int
    """The place of the first of them in `field.text`; `REWRITTEN` where they are not those characters."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """The text of a conversation."""

    text: str
    pieces: tuple[Piece, ...]
    """In the order of the text."""
    headers: tuple[Piece, ...] = ()
    """Names and ids of messages, in the order of the text; they are no part of what is said."""
    generated: tuple[tuple[int, int], ...] | None = None
    """The characters in `{% generation %}` blocks; None where the template has none of them."""


class _Checks:
    """Which conversations are rendered without tracing too, to see that the text is the same: all of them. Of templates
    that do only what is known to be the same for traced texts, it is the first ones, each that has other roles or keys
    than those before, and some of the others: to do it for all doubles the time."""

    def __init__(self, template: str) -> None:
        self.template = template
        self.num_seen = 0
        self.kinds: set[Any] = set()

    def wants(self, messages: Sequence[Message], tools: Sequence[Any], generation_prompt: bool) -> bool:
        """Whether this one is to be checked; it counts as seen."""
        kind = (frozenset((message["role"], *message) for message in messages), bool(tools), generation_prompt)
        is_new = kind not in self.kinds
        self.kinds.add(kind)
        self.num_seen += 1
        is_due = is_new or self.num_seen <= _FIRST_CHECKED or self.num_seen % _CHECKED_EVERY == 0
        return is_due or not is_simple(self.template)


class Renderer(Protocol):
    """Makes text of messages; it raises whatever the template raises, and `UnprovenRenderingError`."""

    marks_generation: bool
    """Whether the template says what the model writes."""

    def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), generation_prompt: bool = False
    ) -> Rendered:
        """Return the text of the conversation, followed by the header of an answer where `generation_prompt` is set."""
        ...

    def outline(self, roles: Sequence[str]) -> Outline | None:
        """What is written for messages of `roles` with contents alone, where that does not depend on the contents."""
        ...

    def render_plain(self, messages: Sequence[Message]) -> str:
        """The text of a conversation without tools, by Jinja as the model's users have it: nothing of it is located."""
        ...


class TemplateRenderer:
    """Renders a template of the user's own."""

    def __init__(self, template: str, tokenizer: PreTrainedTokenizerBase) -> None:
        self.template = template
        tokens = tokenizer.special_tokens_map
        self.tokens = {name: str(tokens[name]) for name in SPECIAL_TOKENS if name in tokens}
        self.marks_generation = marks_generation(template)
        self.checks = _Checks(template)
        self._outlines = OutlineFinder(
            template, Unwritten, {**self.tokens, "tools": None, "add_generation_prompt": False}
        )

    def outline(self, roles: Sequence[str]) -> Outline | None:
        """What is written for messages of `roles` with contents alone, where that does not depend on the contents."""
        return self._outlines.find(roles)

    def render_plain(self, messages: Sequence[Message]) -> str:
        """The text of a conversation without tools, by Jinja alone."""
        return self._render_plain(messages, {**self.tokens, "tools": None, "add_generation_prompt": False})

    def _render_plain(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> str:
        return compile_plain_template(self.template).render(messages=[dict(m) for m in messages], **variables)

    def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), generation_prompt: bool = False
    ) -> Rendered:
        """Return the text of the conversation."""
        variables = {**self.tokens, "tools": list(tools) or None, "add_generation_prompt": generation_prompt}
        traced_tools = trace(list(tools), TOOLS, "tools") or None
        text = compile_template(self.template).render(
            messages=_traced(messages), **{**variables, "tools": traced_tools}
        )
        if self.checks.wants(messages, tools, generation_prompt):
            _check_equal(text, self._render_plain(messages, variables))
        return _located(text, self.marks_generation)


class ChatTemplateRenderer:
    """Renders a chat template as the tokenizer's `apply_chat_template` does."""

    def __init__(self, template: str, tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any]) -> None:
        """`variables` are given to the template with each conversation."""
        self.template = template
        self.variables = {**tokenizer.special_tokens_map, **variables}
        self.checks = _Checks(template)
        self.marks_generation = marks_generation(template)
        given = {"tools": None, "documents": None, "add_generation_prompt": False}
        self._outlines = OutlineFinder(template, jinja2.Undefined, {**given, **self.variables})
        self._dumps_arguments = False
        self._dumps_arguments = self._wants_text()

    def outline(self, roles: Sequence[str]) -> Outline | None:
        """What is written for messages of `roles` with contents alone, where that does not depend on the contents."""
        return self._outlines.find(roles)

    def render_plain(self, messages: Sequence[Message]) -> str:
        """The text of a conversation without tools, by Transformers."""
        return render_chat_template(self.template, messages, (), False, self.variables)

    def _wants_text(self) -> bool:
        """Whether the template takes the arguments of calls as JSON text only: it fails on a mapping."""
        with suppress(Exception):  # Templates run arbitrary expressions and refuse in any way they like.
            self.render([question(), call()])
            return False
        self._dumps_arguments = True
        try:
            self.render([question(), call()])
        except Exception:
            return False  # It takes no calls at all.
        return True

    def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), generation_prompt: bool = False
    ) -> Rendered:
        """Return the text of the conversation."""
        try:
            return self._render(messages, tools, generation_prompt)
        except UnprovenRenderingError:
            # A template that writes the time may have written another one in its second rendering.
            return self._render(messages, tools, generation_prompt)

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], generation_prompt: bool
    ) -> Rendered:
        spoken = [{key: value for key, value in message.items() if value is not None} for message in messages]
        if self._dumps_arguments:
            spoken = [_with_text_arguments(message) for message in spoken]
        text = compile_chat_template(self.template).render(
            messages=_traced(spoken),
            tools=trace(list(tools), TOOLS, "tools") or None,
            documents=None,
            add_generation_prompt=generation_prompt,
            **self.variables,
        )
        if self.checks.wants(spoken, tools, generation_prompt):
            plain = render_chat_template(self.template, spoken, tools, generation_prompt, self.variables)
            _check_equal(text, plain)
        return _located(text, self.marks_generation)


def chat_renderers(
    tokenizer: PreTrainedTokenizerBase, variables: Mapping[str, Any], template: str | None = None
) -> tuple[ChatTemplateRenderer, ChatTemplateRenderer]:
    """The renderers of conversations without tools and of those with tools, for which tokenizers may have a template of
    their own. `template` goes before the tokenizer's.

    Raises `ConfigError` for a template that is broken or does not read all of `variables`; where there is none, too.
    """
    plain, with_tools = template, template
    if template is None:
        try:
            plain, with_tools = tokenizer.get_chat_template(), tokenizer.get_chat_template(tools=[{}])
        except ValueError:
            message = "the tokenizer has no chat template"
            hint = "set it, or use a train format with a template of its own, such as 'jinja_messages'"
            raise ConfigError.at("model.tokenizer.chat_template", message, hint) from None
    templates = list(dict.fromkeys((str(plain), str(with_tools))))
    _check_read(templates, variables, set(tokenizer.special_tokens_map))
    renderers = [ChatTemplateRenderer(template, tokenizer, variables) for template in templates]
    return renderers[0], renderers[-1]


def _check_read(templates: Sequence[str], variables: Mapping[str, Any], given: Collection[str]) -> None:
    """Make sure that each of `variables` is read by a template; `given` are those that all templates are given."""
    read: set[str] = set()
    for template in templates:
        fault = syntax_error(template)
        if fault is not None:
            hint = "write another one, which goes before the one that the tokenizer has"
            raise ConfigError.at("model.tokenizer.chat_template", f"the chat template is broken: {fault}", hint)
        read |= read_variables(template)
    for name in variables:
        if name not in read:
            message = f"the chat template does not read '{name}' of 'chat_template_kwargs'"
            names = ", ".join(sorted(read - {"messages", "tools", "documents", *given, *variables, *SPECIAL_TOKENS}))
            hints = [f"it reads {names}"] if names else []
            raise ConfigError.at(f".chat_template_kwargs.{name}", message, *hints)


def _with_text_arguments(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message with the arguments of its calls as JSON text."""
    calls = message.get(TOOL_CALLS)
    if not isinstance(calls, list | tuple):
        return dict(message)
    dumped = []
    for made in calls:
        function = made.get("function") if isinstance(made, Mapping) else None
        if isinstance(function, Mapping) and isinstance(function.get("arguments"), Mapping):
            text = json.dumps(function["arguments"], ensure_ascii=False)
            made = {**made, "function": {**function, "arguments": text}}
        dumped.append(made)
    return {**message, TOOL_CALLS: dumped}


def _traced(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages whose texts know where they come from, with an assistant's thought under every key that it may have."""
    traced: list[dict[str, Any]] = []
    for index, message in enumerate(messages):
        copy = {key: _trace_value(value, index, key) for key, value in message.items()}
        thought = next((message[key] for key in REASONING_KEYS if message.get(key) is not None), None)
        if thought is not None:
            reasoning = trace(thought, index, REASONING)
            present = {key: reasoning for key in REASONING_KEYS if key in copy}
            copy = {"thinking": reasoning, **copy, **present, REASONING: reasoning}
        traced.append(copy)
    return traced


def _trace_value(value: Any, index: int, key: str) -> Any:
    if key == "role":
        return value
    return trace(value, index, key)


def _check_equal(text: str, plain: str) -> None:
    """Make sure that tracing changes nothing of what the template writes for texts of the usual kind."""
    if text != plain:
        raise UnprovenRenderingError(_NOT_FOLLOWED)


def _located(text: str, has_marks: bool) -> Rendered:
    """The text with its pieces; each must have the characters of what it is said to come from."""
    plain = str.__str__(text)
    pieces: list[Piece] = []
    headers: list[Piece] = []
    marks: list[tuple[int, int]] = []
    position = 0
    block = None
    for run in runs_of(text):
        end = position + run.length
        if run.block is not None and run.block is block:
            marks[-1] = (marks[-1][0], end)
        elif run.block is not None:
            marks.append((position, end))
        block = run.block
        if run.field is not None:
            if run.start != REWRITTEN and plain[position:end] != run.field.text[run.start : run.start + run.length]:
                raise UnprovenRenderingError(_NOT_FOLLOWED)
            of_message = headers if run.field.name in HEADER_KEYS else pieces
            of_message.append(Piece(position, end, run.field, run.start))
        position = end
    if position != len(plain):
        raise UnprovenRenderingError(_NOT_FOLLOWED)
    written = tuple(mark for mark in marks if mark[0] < mark[1])
    return Rendered(plain, tuple(pieces), tuple(headers), written if has_marks else None)


def describe_refusal(error: Exception) -> str:
    """What a template says against a conversation, in a line."""
    return " ".join(re.sub(r"<[^>]* object at 0x[0-9a-f]+>", "it", str(error)).split()) or type(error).__name__
