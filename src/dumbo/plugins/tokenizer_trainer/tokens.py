"""Which tokens a new tokenizer has by name, what they are called by default, and its chat template."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dumbo.config.schema import RunConfig, TokenizerSection
from dumbo.errors import Problem, key_path

NAMED_TOKENS = ("pad_token", "eos_token", "bos_token", "unk_token")
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
    template = CHATML if brings_template else read_template(section.chat_template)
    end = END_OF_TURN if brings_template else END_OF_TEXT
    named = {"pad_token": section.pad_token or PAD, "eos_token": section.eos_token or end}
    named |= {name: token for name in NAMED_TOKENS[2:] if (token := getattr(section, name)) is not None}
    marks = (START_OF_TURN,) if brings_template else ()
    special = tuple(dict.fromkeys((*named.values(), *marks, *section.special_tokens)))
    return Tokens(named, special, section.tokens, template, uses_template)


def read_template(value: str | None) -> str | None:
    """The template in `value`: the text itself, or that of the `.jinja` file that it names (`OSError`: not there)."""
    if value is None or not is_template_file(value):
        return value
    return Path(value).expanduser().read_text(encoding="utf-8")


def is_template_file(value: str) -> bool:
    """Whether `value` is a path rather than a template."""
    return value.endswith(".jinja") and "{" not in value and "\n" not in value


def section_problems(section: TokenizerSection) -> list[Problem]:
    """What is wrong with the tokens and the template by themselves."""
    return [*_token_problems(section), *_template_problems(section.chat_template)]


def _token_problems(section: TokenizerSection) -> Iterator[Problem]:
    for name in NAMED_TOKENS:
        if getattr(section, name) == "":
            yield Problem("a token cannot be empty", key_path(f"model.tokenizer.{name}"))
    for name in ("special_tokens", "tokens"):
        for token, count in Counter(getattr(section, name)).items():
            if not token or count > 1:
                message = f"'{token}' is listed {count} times" if token else "a token cannot be empty"
                yield Problem(message, key_path(f"model.tokenizer.{name}"))
    special = {*section.special_tokens, *(getattr(section, name) for name in NAMED_TOKENS)}
    for token in dict.fromkeys(section.tokens):
        if token in special:
            message = f"'{token}' is an ordinary token here and a special one elsewhere; keep one of them"
            yield Problem(message, key_path("model.tokenizer.tokens"))


def _template_problems(value: str | None) -> Iterator[Problem]:
    key = key_path("model.tokenizer.chat_template")
    try:
        text = read_template(value)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        hint = f"relative paths start at {Path.cwd()}"
        yield Problem(f"the file '{value}' cannot be read: {reason}", key, hints=(hint,))
        return
    if text is not None and "{" not in text:
        yield Problem("is neither a Jinja template nor the path of a .jinja file", key)
