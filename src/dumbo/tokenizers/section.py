"""What can be wrong with `model.tokenizer` by itself, whoever makes the tokenizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from dumbo.config.schema import TokenizerSection
from dumbo.errors import Problem, key_path

NAMED_TOKENS = ("pad_token", "eos_token", "bos_token", "unk_token")


def read_template(value: str) -> str:
    """The template in `value`: the text itself, or that of the `.jinja` file it names (`OSError`: not there)."""
    return Path(value).expanduser().read_text(encoding="utf-8") if is_template_file(value) else value


def is_template_file(value: str) -> bool:
    """Whether `value` is a path rather than a template."""
    return value.endswith(".jinja") and "{" not in value and "\n" not in value


def token_problems(section: TokenizerSection) -> Iterator[Problem]:
    """Tokens that are empty, listed twice, or special and ordinary at once."""
    for name in NAMED_TOKENS:
        if getattr(section, name) == "":
            yield Problem("a token cannot be empty", key_path(f"model.tokenizer.{name}"))
    for name in ("special_tokens", "tokens"):
        where = key_path(f"model.tokenizer.{name}")
        counts = Counter(getattr(section, name))
        if "" in counts:
            yield Problem("a token cannot be empty", where)
        yield from (Problem(f"'{token}' is listed {n} times", where) for token, n in counts.items() if token and n > 1)
    for token in dict.fromkeys(section.tokens):
        roles = [name for name in NAMED_TOKENS if getattr(section, name) == token]
        roles += ["special_tokens"] if token in section.special_tokens else []
        if token and roles:
            message = f"'{token}' is an ordinary token here and a special one in '{roles[0]}'; keep one of them"
            yield Problem(message, key_path("model.tokenizer.tokens"))


def template_problems(section: TokenizerSection) -> Iterator[Problem]:
    """A template whose file cannot be read, or that is no Jinja."""
    value, where = section.chat_template, key_path("model.tokenizer.chat_template")
    if value is None:
        return
    try:
        text = read_template(value)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        hint = f"relative paths start at {Path.cwd()}"
        yield Problem(f"the file '{value}' cannot be read: {reason}", where, hints=(hint,))
        return
    if "{" not in text:
        yield Problem("is neither a Jinja template nor the path of a .jinja file", where)
        return
    from dumbo.tokenizers.template_syntax import syntax_error

    error_text = syntax_error(text)
    if error_text:
        name = f"'{value}' " if is_template_file(value) else ""
        yield Problem(f"the template {name}is not valid Jinja: {error_text}", where)
