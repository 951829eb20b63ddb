"""The Jinja environment of chat templates as Transformers has it, and the same with traced text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, ClassVar, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment
from jinja2.utils import Namespace

from dumbo.chat.traced import join, join_with, mark_generated, to_json

SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token")
VARIABLES = ("messages", "tools", "add_generation_prompt", *SPECIAL_TOKENS)
"""What a template of the user's own is given."""

_SIMPLE_FILTERS = frozenset(
    {"trim", "length", "count", "tojson", "default", "d", "join", "list", "first", "last", "replace", "items", "string"}
    | {"selectattr", "rejectattr", "select", "reject", "map", "reverse", "int", "dictsort", "lower", "upper", "title"}
)
_SIMPLE_METHODS = frozenset(
    {"split", "rsplit", "strip", "lstrip", "rstrip", "replace", "partition", "rpartition", "splitlines", "join"}
    | {"removeprefix", "removesuffix", "startswith", "endswith", "find", "rfind", "index", "count", "upper", "lower"}
    | {"title", "items", "keys", "values", "get"}
)

_REFUSALS = (jinja2.TemplateSyntaxError, SyntaxError, RecursionError, MemoryError)
"""What a template that cannot be read raises: Jinja's parser and Python's call themselves for every level of it."""
_GENERATION = re.compile(r"{%-?\s*generation\s*-?%}")


class _TracingCode(CodeGenerator):
    """Jinja's compiler joins `a ~ b` by a function of its own, which would lose where the parts came from."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.concat(map(str, (")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write(")))")


class GenerationTag(Extension):
    """`{% generation %} ... {% endgeneration %}`, which marks what the model writes."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it so)

    def parse(self, parser: Parser) -> nodes.Node:
        """The block as a call with its text."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Macro) -> str:
        return mark_generated(caller())


class _TemplateNamespace(Namespace):
    """A namespace without private names, as Transformers has it."""

    def __init__(*values: Any, **attributes: Any) -> None:
        self, rest = values[0], values[1:]
        named = dict(*rest, **attributes)
        for name in named:
            _refuse_private(name)
        Namespace.__init__(self, named)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        Namespace.__setitem__(self, name, value)


def _refuse_private(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}, which begins with an underscore")


class Unwritten(jinja2.StrictUndefined):
    """What a template has no value for: it may be asked for (`{% if message.name %}`), not written or looped over."""

    def __bool__(self) -> bool:  # type: ignore[override]
        return False


class TracingEnvironment(ImmutableSandboxedEnvironment):
    """Renders templates to traced text."""

    code_generator_class = _TracingCode
    concat = staticmethod(join)
    generation_tag: ClassVar[type[GenerationTag]] = GenerationTag

    def __init__(self, undefined: type[jinja2.Undefined]) -> None:
        """`undefined` is what stands for values that are not there."""
        extensions = [self.generation_tag, loopcontrols]
        super().__init__(trim_blocks=True, lstrip_blocks=True, undefined=undefined, extensions=extensions)
        _furnish(self)
        self.filters["join"] = _traced_join


def _furnish(environment: SandboxedEnvironment) -> None:
    """The filters and functions that Transformers gives to chat templates."""
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    environment.globals["namespace"] = _TemplateNamespace


@jinja2.pass_environment
def _traced_join(
    environment: jinja2.Environment, value: Iterable[Any], d: str = "", attribute: str | int | None = None
) -> str:
    if attribute is not None:
        value = map(make_attrgetter(environment, attribute), value)
    return join_with(d, map(str, value))


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def marks_generation(template: str) -> bool:
    """Whether the template has `{% generation %}` blocks."""
    return _GENERATION.search(template) is not None


@lru_cache(maxsize=16)
def compile_chat_template(template: str) -> jinja2.Template:
    """A chat template, to be rendered to traced text; what it has no value for is empty, as in Transformers."""
    return TracingEnvironment(jinja2.Undefined).from_string(template)


@lru_cache(maxsize=16)
def compile_template(template: str) -> jinja2.Template:
    """A template of the user's own, to be rendered to traced text; it may not write what it has no value for."""
    return TracingEnvironment(Unwritten).from_string(template)


@lru_cache(maxsize=16)
def compile_plain_template(template: str) -> jinja2.Template:
    """As `compile_template`, rendered by Jinja alone: what `compile_template`'s text must be equal to."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, undefined=Unwritten, extensions=[_IgnoredGenerationTag, loopcontrols]
    )
    _furnish(environment)
    return environment.from_string(template)


class _IgnoredGenerationTag(Extension):
    """The tag as if it were not there."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def syntax_error(template: str) -> str | None:
    """What is wrong with the syntax of `template`, with its line if that is known; None if nothing is."""
    try:
        compile_chat_template(template)
        read_variables(template)
        is_simple(template)
    except _REFUSALS as error:
        return _in_words(error)
    return None


def _in_words(error: BaseException) -> str:
    """What Jinja has against a template, or Python against what Jinja makes of it."""
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"line {error.lineno}: {error.message}"
    if isinstance(error, SyntaxError) and "too many" not in error.msg:
        return f"Python refuses what Jinja makes of it: {error.msg}"
    return "it is nested too deeply to be read"


@lru_cache(maxsize=16)
def is_simple(template: str) -> bool:
    """Whether a template does nothing to texts that could give another result for traced ones: it has no filters and
    calls no methods but those of which that is tested."""
    tree = TracingEnvironment(jinja2.Undefined).parse(template)
    filters = {node.name for node in tree.find_all(nodes.Filter)}
    called = (call.node for call in tree.find_all(nodes.Call))
    methods = {node.attr for node in called if isinstance(node, nodes.Getattr)}
    return filters <= _SIMPLE_FILTERS and methods <= _SIMPLE_METHODS


@lru_cache(maxsize=16)
def read_variables(template: str) -> frozenset[str]:
    """The names of the variables that a template reads and does not set itself."""
    return frozenset(meta.find_undeclared_variables(TracingEnvironment(jinja2.Undefined).parse(template)))


def check_template(template: str) -> None:
    """Raise `ValueError` for a template that is not Jinja, or that reads a variable which it will never be given."""
    environment = TracingEnvironment(Unwritten)
    try:
        tree = environment.parse(template)
        # Filters and tests are looked up by the compiler, not by the parser.
        environment.compile(tree)
        tested = {test.node.name for test in tree.find_all(nodes.Test) if isinstance(test.node, nodes.Name)}
        read = meta.find_undeclared_variables(tree)
    except _REFUSALS as error:
        raise ValueError(_in_words(error)) from None
    unknown = sorted(read - set(VARIABLES) - tested - set(environment.globals))
    if unknown:
        near = get_close_matches(unknown[0], VARIABLES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(VARIABLES)}"
        raise ValueError(f"the template reads '{unknown[0]}', which it is not given; {hint}")
