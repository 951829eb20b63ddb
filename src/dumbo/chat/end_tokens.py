"""What a template writes around an answer: the header that inference is given, and the tokens that end it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dumbo.chat.made_up import answer, beginnings, call, question
from dumbo.chat.rendering import Rendered, Renderer
from dumbo.data.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class AnswerFrame:
    """What stands around the answers of a template."""

    generation_prompt: str
    """What the template writes before an answer at inference; empty where it writes nothing more than the question."""
    begins_answers: bool
    """Whether what stands before an answer in rows is the generation prompt, too."""
    call_opening: str
    """Of a template without generation prompt: what begins a call of a tool."""
    closing: str
    """What stands between an answer and its end."""
    end_of_turn: tuple[str, ...]
    """Texts that end an answer: those that the user chose, or those found after answers that nothing follows."""
    end_of_text: str | None
    """The tokenizer's end token."""
    writes_end_of_text: bool
    """Whether the template writes the tokenizer's end token after an answer."""
    renders_answers: bool
    """Whether a made-up question and answer could be rendered; if not, nothing is known."""
    strips_left: frozenset[str] = frozenset()
    """Tokens that take in the whitespace before them."""
    strips_right: frozenset[str] = frozenset()
    """Tokens that take in the whitespace behind them."""


def probe_frame(renderer: Renderer, tokenizer: PreTrainedTokenizerBase, chosen: Sequence[str] = ()) -> AnswerFrame:
    """Find out what the template writes around answers, by rendering made-up ones."""
    generation_prompt = _generation_prompt(renderer)
    after_answer, after_call = _tail(renderer, answer()), _tail(renderer, call())
    tails = [tail for tail in (after_answer, after_call) if tail is not None]
    eos = str(tokenizer.eos_token) if tokenizer.eos_token else None
    added = _added_tokens(tokenizer, special=False)
    end = _ending(after_answer, added) if after_answer is not None else ""
    if after_answer is not None and end and end == eos:
        # Where another token follows at once, that one ends the turn, and the end of the text stands before it.
        rest = after_answer.partition(end)[2]
        end = next((token for token in added if rest.startswith(token)), end)
    if end and _opens_answers(renderer, end):
        end = ""  # A header that stands ready for the next answer, and not the end of this one.
    ends = (end,) if end else ()
    if after_call is not None and not (end and end in after_call):
        # A call has marks of its own, of which the last one ends the turn.
        last = _last_of(after_call, _added_tokens(tokenizer, special=True)) or after_call.strip()
        ends = (*ends, last) if last and not _opens_answers(renderer, last) else ends
    return AnswerFrame(
        generation_prompt=generation_prompt,
        begins_answers=any(generation_prompt in header for header in _headers(renderer)),
        call_opening=_call_opening(renderer),
        closing=_before_first(after_answer or "", tuple(chosen) or ends),
        end_of_turn=tuple(chosen) or ends,
        end_of_text=eos,
        writes_end_of_text=eos is not None and any(eos in tail for tail in tails),
        renders_answers=bool(tails),
        strips_left=frozenset(str(token) for token in tokenizer.added_tokens_decoder.values() if token.lstrip),
        strips_right=frozenset(str(token) for token in tokenizer.added_tokens_decoder.values() if token.rstrip),
    )


def writes_token(renderer: Renderer, token: str) -> bool:
    """Whether the template writes `token` somewhere in a made-up conversation."""
    for before in beginnings():
        for said in (answer(), call()):
            rendered = _try_render(renderer, [*before, said, question(), said])
            if rendered is not None and token in rendered.text:
                return True
    return False


def _before_first(text: str, tokens: Sequence[str]) -> str:
    """What stands before the first of `tokens`; empty where there is none."""
    places = [place for token in tokens if (place := text.find(token)) >= 0]
    return text[: min(places, default=0)]


def _opens_answers(renderer: Renderer, text: str) -> bool:
    """Whether `text` stands right before an answer."""
    return any(header.rstrip().endswith(text.strip()) for header in _headers(renderer))


def _headers(renderer: Renderer) -> Iterator[str]:
    """What stands between a question and its answer."""
    for before in beginnings():
        header = _between(renderer, before, answer(), "")
        if header is not None:
            yield header


def _tail(renderer: Renderer, said: Message) -> str | None:
    """What the template writes after an answer that nothing follows; None where it does not write such an answer."""
    for before in beginnings():
        rendered = _try_render(renderer, [*before, said])
        ends = [p.end for p in rendered.pieces if p.field.message == len(before)] if rendered else []
        if rendered and ends:
            return rendered.text[max(ends) :]
    return None


def _try_render(renderer: Renderer, messages: Sequence[Message], generation_prompt: bool = False) -> Rendered | None:
    """The text of a made-up conversation, or None where the template refuses it."""
    try:
        return renderer.render(messages, (), generation_prompt)
    except Exception:  # Templates run arbitrary expressions and refuse in any way they like.
        return None


def _generation_prompt(renderer: Renderer) -> str:
    for messages in beginnings():
        without, with_prompt = _try_render(renderer, messages), _try_render(renderer, messages, generation_prompt=True)
        if without is not None and with_prompt is not None and with_prompt.text.startswith(without.text):
            return with_prompt.text[len(without.text) :]
    return ""


def _call_opening(renderer: Renderer) -> str:
    """What begins a call of a tool behind what is a header of answers too."""
    for before in beginnings():
        asked = _try_render(renderer, before, generation_prompt=True)
        if asked is None or not asked.pieces:
            continue
        closing = asked.text[asked.pieces[-1].end :]
        header, opening = (_between(renderer, before, said, closing) for said in (answer(), call()))
        if header is not None and opening is not None:
            return opening.removeprefix(header.rstrip(" \t"))
    return ""


def _between(renderer: Renderer, before: Sequence[Message], said: Message, closing: str) -> str | None:
    """What stands between a question with its `closing` and what is `said`; None where they do not follow."""
    rendered = _try_render(renderer, [*before, said])
    if rendered is None:
        return None
    ends = [piece.end for piece in rendered.pieces if piece.field.message < len(before)]
    starts = [
        piece.start for piece in rendered.pieces if piece.field.message == len(before) and piece.start < piece.end
    ]
    if not ends or not starts:
        return None
    text = rendered.text[max(ends) : min(starts)]
    return text[len(closing) :] if text.startswith(closing) else None


def _ending(tail: str, added: Sequence[str]) -> str:
    """The token right after an answer, or else all that follows it: some templates end turns in plain text."""
    match = re.compile(r"\s*(" + "|".join(map(re.escape, added)) + ")").match(tail) if added else None
    return match.group(1) if match else tail.strip()


def _last_of(text: str, tokens: Sequence[str]) -> str:
    """The last of `tokens` in `text`; empty where it has none."""
    found = re.findall("|".join(map(re.escape, tokens)), text) if tokens else []
    return found[-1] if found else ""


def _added_tokens(tokenizer: PreTrainedTokenizerBase, special: bool) -> list[str]:
    """The tokenizer's added tokens (only the `special` ones), the longest first."""
    decoder: dict[int, Any] = tokenizer.added_tokens_decoder
    tokens = {str(token) for token in decoder.values() if str(token).strip() and (token.special or not special)}
    return sorted(tokens, key=len, reverse=True)
