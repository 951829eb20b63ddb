"""Which characters of a rendered conversation the assistant has to write."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dumbo.data.masking import Span, UnprovenSpanError, choose_mark, locate_contents, sentinel, widen_to_turn
from dumbo.data.records import Conversation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dumbo.plugins.jinja_formatter.rendering import Message, Renderer

BESIDE_CONTENT = ("tool_calls", "reasoning_content", "reasoning", "thinking")
"""What an assistant may say outside of `content`, where a sentinel does not reach."""

ANSWER = "\ue0000\ue000"


class AssistantTurns:
    """Locates the assistant's turns in conversations, by one more render of each."""

    def __init__(self, renderer: Renderer, tokenizer: PreTrainedTokenizerBase) -> None:
        self.renderer = renderer
        self.generation_prompt = _generation_prompt(renderer)
        self.end_of_turn = _end_of_turn(renderer, tokenizer)

    def locate(self, conversation: Conversation, rendered: str) -> list[Span]:
        """Return the spans of the assistant's turns in `rendered`, each with the token that ends it.

        Raises `DataError` where there is none, or where the place of one cannot be proven.
        """
        messages = conversation.messages
        wanted = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        if not wanted:
            roles = ", ".join(f"'{role}'" for role in dict.fromkeys(message["role"] for message in messages))
            hint = f"the roles are {roles}; what is trained has the role 'assistant'"
            raise conversation.origin.error("no assistant message, so there is nothing to train on", hint)
        try:
            return self._locate(conversation, rendered, wanted)
        except UnprovenSpanError as error:
            hint = "its labels would be a guess; mark what the assistant says with {% generation %} in a chat template"
            raise conversation.origin.error(str(error), hint) from None

    def _locate(self, conversation: Conversation, rendered: str, wanted: Sequence[int]) -> list[Span]:
        messages = conversation.messages
        for index in wanted:
            beside = [key for key in BESIDE_CONTENT if messages[index].get(key)]
            if beside:
                raise UnprovenSpanError(index, f"only the place of 'content' can be proven, and it has '{beside[0]}'")
        mark = choose_mark(rendered)
        stand_ins = [{**message, "content": sentinel(mark, index)} for index, message in enumerate(messages)]
        try:
            marked = self.renderer.render(stand_ins, conversation.tools).text
        except Exception as error:  # Templates run arbitrary expressions on what they are given.
            raise UnprovenSpanError(wanted[0], f"the template cannot do without the content: {error}") from None
        pieces = locate_contents(rendered, marked, mark, [message["content"] for message in messages], wanted)
        return [
            widen_to_turn(rendered, pieces, position, self.generation_prompt, self.end_of_turn)
            for position, piece in enumerate(pieces)
            if piece.message in wanted
        ]


def _try_render(renderer: Renderer, messages: Sequence[Message], generation_prompt: bool = False) -> str | None:
    """The text of a made-up conversation, or None where the template refuses it."""
    try:
        return renderer.render(messages, (), generation_prompt).text
    except Exception:  # Templates run arbitrary expressions and refuse in any way they like.
        return None


def _generation_prompt(renderer: Renderer) -> str:
    """What the template writes before an answer at inference; empty where it writes nothing more than the question."""
    question = [{"role": "user", "content": "?"}]
    without, with_prompt = _try_render(renderer, question), _try_render(renderer, question, generation_prompt=True)
    if without is None or with_prompt is None or not with_prompt.startswith(without):
        return ""
    return with_prompt[len(without) :]


def _end_of_turn(renderer: Renderer, tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """The end token, and what the template puts after an answer that nothing follows: a token, or else all of the text.

    Not just any special token: one that begins the next turn (`[INST]`) is not the assistant's to write.
    """
    ends = [str(tokenizer.eos_token)] if tokenizer.eos_token else []
    text = _try_render(renderer, [{"role": "user", "content": "?"}, {"role": "assistant", "content": ANSWER}])
    _, _, tail = (text or "").partition(ANSWER)
    added = [str(token) for token in tokenizer.added_tokens_encoder if token.strip()]
    found = _any_of(added).match(tail)
    if tail.strip():
        ends.append(found.group().strip() if found else tail.strip())
    return _any_of(ends)


def _any_of(texts: list[str]) -> re.Pattern[str]:
    """A pattern of one of `texts`, the longest that fits, after any whitespace."""
    longest_first = sorted(set(texts), key=len, reverse=True)
    return re.compile(r"\s*(?:" + "|".join(map(re.escape, longest_first)) + ")") if texts else re.compile("(?!)")
