"""Finds syntax errors in chat templates, in the dialect of Jinja that Transformers renders."""

from __future__ import annotations

from jinja2 import TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class GenerationTag(Extension):
    """Accepts `{% generation %} ... {% endgeneration %}`, which marks what the assistant says."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> Node | list[Node]:
        """Return the statements inside the tag as they are."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def syntax_error(template: str) -> str | None:
    """What is wrong with the syntax of `template`, with its line; None if nothing is."""
    try:
        ImmutableSandboxedEnvironment(extensions=[GenerationTag, loopcontrols]).parse(template)
    except TemplateSyntaxError as error:
        return f"line {error.lineno}: {error.message}"
    return None
