"""Which tokens a new tokenizer has by name, what they are called by default, and its chat template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dumbo.config.schema import RunConfig
from dumbo.tokenizers.section import NAMED_TOKENS, read_template

PAD, END_OF_TEXT = "<|pad|>", "<|endoftext|>"
START_OF_TURN, END_OF_TURN = "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% for message in messages %}"
    "{{ '" + START_OF_TURN + "' + message.role + '\\n' + message.content + eos_token + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + START_OF_TURN + "assistant\\n' }}{% endif %}"
)
"""The default where a train format needs a template. The end token closes every turn."""


@dataclass(frozen=True)
class Tokens:
    """What the tokenizer gets beside what it learns."""

    named: Mapping[str, str]
    """`pad_token` and so on -> the token; only those that it has."""
    special: tuple[str, ...]
    """All special tokens in the order of their ids, from 0."""
    ordinary: tuple[str, ...]
    """Added tokens that are part of the text."""
    chat_template: str | None
    uses_template: bool
    """Whether texts are trained as the chat template writes them."""


def choose_tokens(config: RunConfig) -> Tokens:
    """What the configuration asks for, with the defaults for the rest."""
    section = config.model.tokenizer
    uses_template = any(entry.train_format.needs_chat_template for entry in config.datasets)
    brings_template = section.chat_template is None and uses_template
    template = CHATML if brings_template else section.chat_template and read_template(section.chat_template)
    end = END_OF_TURN if brings_template else END_OF_TEXT
    named = {"pad_token": section.pad_token or PAD, "eos_token": section.eos_token or end}
    named |= {name: token for name in NAMED_TOKENS[2:] if (token := getattr(section, name)) is not None}
    marks = (START_OF_TURN,) if brings_template else ()
    special = tuple(dict.fromkeys((*named.values(), *marks, *section.special_tokens)))
    return Tokens(named, special, section.tokens, template, uses_template)
