"""The plugins of one run: they are made here, given their options, and every hook is called through here."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from dumbo.blame import describe, describe_exit
from dumbo.config.schema import RunConfig
from dumbo.errors import ConfigError, DumboError, PluginError, Problem
from dumbo.plugin_finder import FoundPlugin
from dumbo.plugin_interfaces import INTERFACES, Interface
from dumbo.plugin_loader import BasePlugin, Phase, ReaderPlugin, Services, StatePlugin
from dumbo.plugin_results import check_result, shown
from dumbo.plugin_rules import keys_in_charge, rows_are_separate, section_at, serving, unused

T = TypeVar("T")
R = TypeVar("R")


class PluginManager:
    """The plugins of one run. `check_plugins` must have found no problem in `found`."""

    def __init__(self, found: Sequence[FoundPlugin]) -> None:
        self.found = tuple(found)
        self._plugins = {plugin.name: plugin for plugin in found}
        self._instances: dict[str, BasePlugin] = {}

    def start(self, config: RunConfig) -> list[Problem]:
        """Make the plugins, give each its options, and let each check the configuration; what is wrong is returned."""
        problems: list[Problem] = []
        for found in self.found:
            try:
                plugin = found.type()
                plugin.config, plugin.options = config, options_of(found.type, config)
                plugin.seats = frozenset(spec.type for spec in INTERFACES if found in serving(spec, self.found))
                self._instances[found.name] = plugin
                with _blaming(found, "check"):
                    plugin.check(config)
            except ConfigError as error:
                problems += error.problems
            except DumboError as error:
                problems.append(Problem(str(error), ("plugins", found.position)))
            except (Exception, SystemExit) as error:
                message = f"plugin '{found.name}' cannot be made: {describe(error, found.type)}"
                problems.append(Problem(message, ("plugins", found.position)))
        return problems

    def bind(self, services: Services) -> None:
        """Give every plugin the run's services, before the first hook."""
        for plugin in self._instances.values():
            plugin.services = services

    def names(self, interface: type[BasePlugin]) -> list[str]:
        """The plugins that serve `interface`, in the order in which their hooks are called."""
        return [plugin.name for plugin in serving(_interface(interface), self.found)]

    def call_one(self, interface: type[BasePlugin], *arguments: Any, **keywords: Any) -> Any:
        """Call the hook of the one plugin in this seat, and make sure that it read every key in its charge."""
        spec = _interface(interface)
        found = serving(spec, self.found)[0]
        section = self._watched_section(spec, found)
        if section is None:
            return self._call(found, spec.hook, *arguments, **keywords)
        earlier = section.start_reading()  # a trainer that is being watched may ask for its optimizer here
        result = self._call(found, spec.hook, *arguments, **keywords)
        charge = keys_in_charge(spec, self._instances[found.name].config, self.found)
        problems = [unused(spec, found, name) for name in section.unread() if name in charge]
        section.resume_reading(earlier)
        if problems:
            raise ConfigError(problems)
        return result

    def call_seat(self, interface: type[BasePlugin], *arguments: Any) -> Any:
        """As `call_one` for a seat that may be empty: None where nobody sits in it."""
        return self.call_one(interface, *arguments) if self.names(interface) else None

    def seat(self, interface: type[BasePlugin], config: RunConfig) -> Callable[..., Any] | None:
        """The hook of a seat that may be empty, to be called later, with `config` as its last argument."""
        if not self.names(interface):
            return None
        return lambda *arguments: self.call_one(interface, *arguments, config)

    def call_each(self, interface: type[BasePlugin], *arguments: Any) -> Iterator[tuple[str, Any]]:
        """Call the hook of every plugin that has it, in order; yields names and results."""
        spec = _interface(interface)
        for found in serving(spec, self.found):
            yield found.name, self._call(found, spec.hook, *arguments)

    def fold(
        self, interface: type[BasePlugin], value: Any, config: RunConfig, phases: Container[Phase] = tuple(Phase)
    ) -> Any:
        """Hand `value` from hook to hook of the plugins in `phases`."""
        spec = _interface(interface)
        for found in serving(spec, self.found):
            if getattr(found.type, "phase", Phase.STRUCTURE) in phases:
                value = self._call(found, spec.hook, value, config)
        return value

    @property
    def rows_are_separate(self) -> bool:
        """Whether the batches of this run can be cut between their rows."""
        return rows_are_separate(self.found)

    def load_states(self, states: Mapping[str, Any]) -> None:
        """Give every plugin that has a state the one that it had; one without an entry keeps its own."""
        for found in serving(_interface(StatePlugin), self.found):
            if found.name in states:
                with _blaming(found, "load_state_dict"):
                    instance: Any = self._instances[found.name]
                    instance.load_state_dict(states[found.name])

    def call_provider(self, interface: type[BasePlugin], table: str, name: str, *arguments: Any) -> Any:
        """Call the hook of the plugin whose `table` (`readers`, `data_formats`, `train_formats`) has `name`."""
        return self._call(self.found_provider(interface, table, name), _interface(interface).hook, *arguments)

    def iterate_provider(self, interface: type[BasePlugin], table: str, name: str, *arguments: Any) -> Iterator[Any]:
        """As `call_provider`, for a hook that yields: what it raises on the way is blamed on the plugin too."""
        found, hook = self.found_provider(interface, table, name), _interface(interface).hook
        with _blaming(found, hook):
            rows = getattr(self._instances[found.name], hook)(*arguments)
            check_result(found.name, _interface(interface), rows)
            yield from rows

    def provider(self, interface: type[BasePlugin], table: str, name: str) -> str:
        """The name of the plugin whose `table` has `name`."""
        return self.found_provider(interface, table, name).name

    def fingerprint(self, reader: str, options: Any) -> str | None:
        """What the reader of that name calls the rows of an entry; None where it calls them nothing."""
        found = self.found_provider(ReaderPlugin, "readers", reader)
        instance = self._instances[found.name]
        if not hasattr(instance, "fingerprint"):
            return None
        with _blaming(found, "fingerprint"):
            made: str | None = instance.fingerprint(options)
        return made

    def guarded(
        self, interface: type[BasePlugin], table: str, name: str, function: Callable[[T], R], kind: Any, words: str
    ) -> Callable[[T], R]:
        """A function that `call_provider` returned; what it raises is blamed on the plugin that made it, and so is what
        it returns and is no `kind`, which is called `words`."""
        found, what = self.found_provider(interface, table, name), f"what {_interface(interface).hook} returned"

        def call(item: T) -> R:
            with _blaming(found, what):
                result = function(item)
            if not isinstance(result, kind):
                raise PluginError(f"plugin '{found.name}': {what} made {shown(result)} of a row; it must make {words}")
            return result

        return call

    def guarded_iterator(
        self, interface: type[BasePlugin], table: str, name: str, function: Callable[[T], Iterator[R]]
    ) -> Callable[[T], Iterator[R]]:
        """As `guarded`, for a function that yields."""
        found, what = self.found_provider(interface, table, name), f"what {_interface(interface).hook} returned"

        def call(item: T) -> Iterator[R]:
            with _blaming(found, what):
                yield from function(item)

        return call

    def holder(self, interface: type[BasePlugin]) -> BasePlugin:
        """The one plugin in a seat."""
        return self._instances[serving(_interface(interface), self.found)[0].name]

    def found_provider(self, interface: type[BasePlugin], table: str, name: str) -> FoundPlugin:
        """The plugin whose `table` has `name`."""
        plugins = serving(_interface(interface), self.found)
        return next(plugin for plugin in plugins if name in getattr(plugin.type, table, {}))

    def _call(self, found: FoundPlugin, hook: str, *arguments: Any, **keywords: Any) -> Any:
        """The hook's result; no result is an error, as what was asked for would be left undone in silence."""
        with _blaming(found, hook):
            result = getattr(self._instances[found.name], hook)(*arguments, **keywords)
        check_result(found.name, next(spec for spec in INTERFACES if spec.hook == hook), result)
        return result

    def _watched_section(self, spec: Interface, found: FoundPlugin) -> Any:
        """The section in the seat's charge, where the plugin has not declared what it reads of it."""
        if not spec.charge or found.type.consumes is not None:
            return None
        return section_at(self._instances[found.name].config, spec.charge)


@contextmanager
def _blaming(found: FoundPlugin, hook: str) -> Iterator[None]:
    """Turn what a plugin raises into an error that names it; errors that explain themselves pass."""
    try:
        yield
    except DumboError:
        raise
    except SystemExit as error:
        message = f"plugin '{found.name}' ended the program in {hook} ({describe_exit(error, found.type)})"
        raise PluginError(message) from error
    except Exception as error:
        raise PluginError(f"plugin '{found.name}' failed in {hook}: {describe(error, found.type)}") from error


def options_of(plugin: type[BasePlugin], config: RunConfig) -> Any:
    """The validated options of a plugin class; without a section of its own, an instance of its options' defaults."""
    return plugin.options_type() if plugin.section is None else section_at(config, plugin.section)


def _interface(interface: type[BasePlugin]) -> Interface:
    return next(spec for spec in INTERFACES if spec.type is interface)
