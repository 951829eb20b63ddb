"""What can be wrong with `model.tokenizer` by itself, whoever makes the tokenizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from dumbo.config.schema import TokenizerSection
from dumbo.errors import Problem, key_path

NAMED_TOKENS = ("pad_token", "eos_token", "bos_token", "unk_token")


def read_template(value: str) -> str:
    """The template that `value` names or is: a named one's text, that of a file (`OSError`: not there), or itself."""
    from dumbo.chat.names import TEMPLATES, template_text

    if value in TEMPLATES:
        return template_text(value)
    return Path(value).expanduser().read_text(encoding="utf-8") if is_template_file(value) else value


def is_template_file(value: str) -> bool:
    """Whether `value` is a path rather than a name or a template."""
    return value.endswith((".jinja", ".jinja2")) and "{" not in value and "\n" not in value


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
    """A template of no known name, whose file cannot be read, or that is no Jinja."""
    fault = template_fault(section.chat_template) if section.chat_template is not None else None
    if fault:
        message, *hints = fault
        yield Problem(message, key_path("model.tokenizer.chat_template"), hints=tuple(hints))


def template_fault(value: str) -> list[str] | None:
    """What is wrong with a template that a user names or writes, and then hints; None if nothing is."""
    from dumbo.chat.names import TEMPLATES

    try:
        text = read_template(value)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        return [f"the file '{value}' cannot be read: {reason}", f"relative paths start at {Path.cwd()}"]
    if "{" not in text:
        near = get_close_matches(value, TEMPLATES, n=1)
        known = [f"did you mean '{near[0]}'?"] if near else [f"names are {', '.join(TEMPLATES)}"]
        return ["is neither a named template, nor Jinja, nor the path of a .jinja file", *known]
    from dumbo.chat.environment import syntax_error

    error_text = syntax_error(text)
    name = f"'{value}' " if is_template_file(value) else ""
    return [f"the template {name}is not valid Jinja: {error_text}"] if error_text else None
