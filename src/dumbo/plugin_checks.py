"""What can be said of a plugin's class before it is made: what it declares, its options, its methods' parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, cast

from pydantic import ConfigDict, PydanticUserError, ValidationError

from dumbo.config.schema import FormatOptions
from dumbo.config.section import Section
from dumbo.errors import Place, Problem
from dumbo.plugin_interfaces import INTERFACES, Interface
from dumbo.plugin_loader import BasePlugin, Phase

TABLES: tuple[tuple[str, str, type[Section]], ...] = (
    ("read", "readers", Section),
    ("build_data_format", "data_formats", FormatOptions),
    ("build_train_format", "train_formats", FormatOptions),
)
"""Hook, its table from names to options, and what these derive from."""


def claims(plugin: type[BasePlugin], interface: Interface) -> bool:
    """Whether the class has the interface's method itself."""
    method = getattr(plugin, interface.hook, None)
    return callable(method) and method is not getattr(interface.type, interface.hook)


def check_declarations(name: str, plugin: type[BasePlugin]) -> list[Problem]:
    """Everything that is wrong with the class as such, whatever the configuration."""
    return [
        Problem(f"plugin '{name}': {message}", hints=tuple(hints)) for message, *hints in _mistakes(cast("Any", plugin))
    ]


@lru_cache(maxsize=128)  # A run asks for every plugin several times, and to check the options' defaults takes 10 ms.
def _mistakes(plugin: type[BasePlugin]) -> tuple[tuple[str, ...], ...]:
    return (*_attributes(plugin), *_options(plugin), *_tables(plugin), *_signatures(plugin))


def _attributes(plugin: type[BasePlugin]) -> Iterator[tuple[str, ...]]:
    """Wrong kinds of values in what a class declares."""
    for attribute in ("requires", "conflicts", "after"):
        if not _is_set_of_texts(getattr(plugin, attribute)):
            yield f"'{attribute}' must be a set of names of plugins", f'write {attribute} = frozenset({{"name"}})'
    if plugin.consumes is not None and not _is_set_of_texts(plugin.consumes):
        yield "'consumes' must be a set of keys", 'write consumes = frozenset({"trainer.arguments.learning_rate"})'
    if isinstance(plugin.packages, str) or not all(isinstance(package, str) for package in plugin.packages):
        yield "'packages' must be a tuple of names of modules", 'write packages = ("name",)'
    seats = {interface.type for interface in INTERFACES}
    if not isinstance(plugin.yields, set | frozenset) or not plugin.yields <= seats:
        yield "'yields' must be a set of interface classes", "write e.g. yields = frozenset({LossPlugin})"
    if not isinstance(getattr(plugin, "rows_are_separate", False), bool):
        yield "'rows_are_separate' must be True or False", "write rows_are_separate = True"
    phase = getattr(plugin, "phase", Phase.STRUCTURE)
    if not isinstance(phase, Phase):
        yield f"'phase' must be a Phase, not {phase!r}", f"one of {', '.join(f'Phase.{one.name}' for one in Phase)}"
    if callable(getattr(plugin, "run_command", None)):
        commands = getattr(plugin, "commands", None)
        if not isinstance(commands, Mapping) or not commands or not _is_set_of_texts({*commands, *commands.values()}):
            yield "'commands' must map each verb to its line of help", 'write commands = {"verb": "what it does"}'


def _is_set_of_texts(value: Any) -> bool:
    return isinstance(value, set | frozenset) and all(isinstance(item, str) for item in value)


def _options(plugin: type[BasePlugin]) -> Iterator[tuple[str, ...]]:
    """The options class, and the section that it belongs to."""
    options, section = plugin.options_type, plugin.section
    if section is not None and not isinstance(section, str):
        yield f"'section' must be a text, not {section!r}", 'write section = "trainer.NAME"'
        return
    problem = _not_a_section(options, "options_type", Section)
    if problem:
        yield problem
        return
    held = [model for _, table, _ in TABLES for model in _entries(plugin, table).values()]
    if section is None and options is not Section and options not in held:
        yield (
            f"it has options_type '{options.__name__}' but no section: nobody can write these options",
            'write section = "model.NAME", "trainer.NAME" or "evaluation.NAME"',
        )
    if section is not None and options is Section:
        yield (
            f"it has the section '{section}' but no options_type: nothing can be written there",
            "write options_type = a class derived from dumbo.config.section.Section, or remove the section",
        )
    yield from _wrong_defaults(options, f"options_type '{options.__name__}'")


def _not_a_section(options: Any, what: str, base: type[Section]) -> tuple[str, ...] | None:
    if isinstance(options, Section):
        kind = type(options).__name__
        return f"{what} is an instance, not a class", f"write {kind}, not {kind}()"
    if isinstance(options, type) and issubclass(options, base):
        return None
    kind = options.__name__ if isinstance(options, type) else repr(options)
    return f"{what} '{kind}' is not a {base.__name__}", f"derive it from {base.__module__}.{base.__name__}"


def _entries(plugin: type[BasePlugin], table: str) -> Mapping[Any, Any]:
    entries = getattr(plugin, table, {})
    return entries if isinstance(entries, Mapping) else {}


def _tables(plugin: type[BasePlugin]) -> Iterator[tuple[str, ...]]:
    """The tables of readers and formats."""
    for hook, table, base in TABLES:
        entries = getattr(plugin, table, {})
        example = f'write {table} = {{"name": OptionsClass}}'
        if not isinstance(entries, Mapping) or not all(isinstance(name, str) for name in entries):
            yield f"'{table}' must map names to classes of options", example
            continue
        if not entries and callable(getattr(plugin, hook, None)):
            yield f"it has '{hook}', but '{table}' is empty: nothing can be asked of it", example
        for name, options in entries.items():
            problem = _not_a_section(options, f"{table}['{name}']", base)
            if problem:
                yield problem
            else:
                yield from _wrong_defaults(options, f"{table}['{name}']")


def _wrong_defaults(options: type[Section], what: str) -> Iterator[tuple[str, ...]]:
    """Defaults that are not of their field's type. A field's own validators may refuse its default: none of our
    business."""
    config = ConfigDict(validate_default=True, use_attribute_docstrings=False)
    try:
        space = {"model_config": config, "__module__": options.__module__}
        checked: Any = type("Checked", (options,), space)
        checked.model_validate({})
    except ValidationError as error:
        for mistake in error.errors(include_url=False):
            if mistake["loc"] and mistake["type"] not in ("missing", "value_error", "assertion_error"):
                field = mistake["loc"][0]
                text = mistake["msg"].replace("Input should", "it should")
                yield (f"{what}: the default of '{field}' is wrong: {text}, and is {mistake['input']!r}",)
    except PydanticUserError as error:
        yield (f"{what} cannot be used: {str(error).splitlines()[0]}",)
    except Exception:
        return  # a validator that cannot take the default


def _signatures(plugin: type[BasePlugin]) -> Iterator[tuple[str, ...]]:
    """Methods that cannot be called in the way that a run calls them."""
    if plugin.__init__ is not object.__init__ and not _takes(plugin.__init__, 1):
        yield (
            f"__init__ takes {_shown(plugin.__init__)}, must take (self){_place(plugin.__init__)}",
            "what users choose belongs into options_type: the other methods have it as self.options",
        )
    hooks = [(interface.type, interface.hook) for interface in INTERFACES if claims(plugin, interface)]
    for base, hook in [*hooks, (BasePlugin, "check")]:
        method = inspect.getattr_static(plugin, hook)
        bound = isinstance(method, staticmethod | classmethod)
        if not (bound or inspect.isfunction(method)):
            continue
        called, parameters = getattr(plugin, hook), inspect.signature(getattr(base, hook)).parameters.values()
        keywords = [parameter.name for parameter in parameters if parameter.default is not parameter.empty]
        if not _takes(called, len(parameters) - len(keywords) - bound, keywords):
            expected = _shown(getattr(base, hook))
            yield (f"{hook} takes {_shown(called)}, must take {expected}{_place(called)}",)


def _takes(function: Callable[..., Any], count: int, keywords: list[str] | tuple[str, ...] = ()) -> bool:
    """Whether the function can be called with `count` values and the `keywords`."""
    try:
        inspect.signature(function).bind(*[None] * count, **dict.fromkeys(keywords))
    except TypeError:
        return False
    except ValueError:
        return True  # written in C, and not told
    return True


def takes(function: Callable[..., Any], count: int) -> bool:
    """Whether the function can be called with `count` values."""
    return _takes(function, count)


def _shown(function: Callable[..., Any]) -> str:
    """The parameters of a function, without types."""
    words = []
    for parameter in inspect.signature(function).parameters.values():
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        words.append(str(parameter.replace(annotation=parameter.empty, default=parameter.empty)) + default)
    return f"({', '.join(words)})"


def parameters_of(function: Callable[..., Any]) -> str:
    """The parameters of a function and where it stands, for messages."""
    return _shown(function) + _place(function)


def _place(function: Any) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f" ({Place(code.co_filename, code.co_firstlineno)})" if code else ""
