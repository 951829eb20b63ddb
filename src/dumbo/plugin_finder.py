"""From names under `plugins:` to classes: shipped, by entry point, `package.module:Class`, `./file.py:Class`."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint, EntryPoints, PackageNotFoundError, entry_points, metadata
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from dumbo.blame import describe
from dumbo.errors import ConfigError, Problem
from dumbo.plugin_checks import check_declarations
from dumbo.plugin_loader import BasePlugin

GROUP = "dumbo.plugins"
_SHIPPED = Path(__file__).parent / "plugins"


@dataclass(frozen=True)
class FoundPlugin:
    """A plugin class and where it came from."""

    name: str
    type: type[BasePlugin]
    origin: str
    """`shipped`, the distribution that brings it, or the file."""
    position: int = 0
    """Its place in the list under `plugins:`, from 0."""


def shipped_names() -> tuple[str, ...]:
    """The plugins that dumbo brings: the folders of `dumbo/plugins`, in alphabetical order; nothing is imported."""
    return tuple(sorted(path.parent.name for path in _SHIPPED.glob("*/plugin.py")))


def installed_names() -> tuple[str, ...]:
    """Shipped plugins, then those of other packages; nothing is imported."""
    return (*shipped_names(), *sorted(brought_plugins().names))


def find_plugin(name: str, folder: Path, brought: EntryPoints | None = None) -> FoundPlugin:
    """The plugin called `name` in a configuration that lies in `folder`.

    `brought` is `brought_plugins()`, for a caller that looks for many: finding them takes 14 ms.

    Raises:
        ConfigError: with problems without a place, saying what to write.
    """
    found = _from_address(name, folder) if ":" in name else _from_name(name, brought)
    problems = check_declarations(found.name, found.type)
    if problems:
        raise ConfigError(problems)
    return found


def _from_name(name: str, brought: EntryPoints | None) -> FoundPlugin:
    entries = list((brought_plugins() if brought is None else brought).select(name=name))
    if name in shipped_names():
        if entries:
            _refuse(f"the package {_package(entries[0])} brings a plugin of the same name as dumbo's own '{name}'")
        module = _import(f"dumbo.plugins.{name}.plugin", name)
        return FoundPlugin(name, _only_class(module, name), "shipped")
    if entries:
        return _from_entry_point(entries, name)
    if name.endswith(".py"):
        _refuse(f"'{name}' names a file but no class", f"write '{_relative(name)}:ClassName'")
    raise _unknown(name)


def _unknown(name: str) -> ConfigError:
    near = difflib.get_close_matches(name, installed_names(), n=1, cutoff=0.6)
    hints = [f"did you mean '{near[0]}'?"] if near else []
    hints.append(f"installed are: {', '.join(installed_names())}")
    hints.append("a class of your own is written './file.py:ClassName' or 'package.module:ClassName'")
    return ConfigError([Problem(f"no plugin is called '{name}'", hints=tuple(hints))])


def brought_plugins() -> EntryPoints:
    """The entry points of other packages' plugins; nothing is imported."""
    return entry_points(group=GROUP)


def find_installed() -> tuple[list[FoundPlugin], list[Problem]]:
    """Every installed plugin that can be imported, and a problem for each that cannot."""
    found: list[FoundPlugin] = []
    problems: list[Problem] = []
    brought = brought_plugins()
    for name in (*shipped_names(), *sorted(brought.names)):
        try:
            found.append(find_plugin(name, Path(), brought))
        except ConfigError as error:
            problems += error.problems
    return found, problems


def missing_packages(plugin: type[BasePlugin]) -> tuple[str, ...]:
    """The modules that the plugin needs and this environment lacks."""
    return tuple(package for package in plugin.packages if importlib.util.find_spec(package) is None)


def install_hint(plugin: str, package: str) -> str:
    """The pip command that brings `package`, which `plugin` needs: the plugin's extra where it has one."""
    if plugin not in shipped_names():
        return f"pip install {package}"
    try:
        extras = metadata("dumbo-trainer").get_all("Provides-Extra") or []
    except PackageNotFoundError:
        extras = []
    return f"pip install 'dumbo-trainer[{plugin}]'" if plugin in extras else f"pip install {package}"


def _from_entry_point(entries: list[EntryPoint], name: str) -> FoundPlugin:
    if len({entry.value for entry in entries}) > 1:
        packages = " and ".join(sorted(_package(entry) for entry in entries))
        _refuse(f"two packages bring a plugin called '{name}': {packages}", "uninstall one of them")
    entry = entries[0]
    module = _import(entry.module, name)
    target = getattr(module, entry.attr, None) if entry.attr else _only_class(module, name)
    return FoundPlugin(name, _plugin_class(target, f"{entry.value} of the package {_package(entry)}"), _package(entry))


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else entry.module


def _from_address(address: str, folder: Path) -> FoundPlugin:
    where, _, class_name = address.rpartition(":")
    if not where.strip() or not class_name.strip():
        _refuse(f"'{address}' names no class", "write './file.py:ClassName' or 'package.module:ClassName'")
    if where.endswith(".py") or where.startswith((".", "/", "~")):
        file = folder / Path(where).expanduser()
        if not file.is_file():
            beside = [path.name for path in file.parent.glob("*.py")] if file.parent.is_dir() else []
            near = difflib.get_close_matches(file.name, beside, n=1)
            hint = "the path is taken from the folder of the configuration file"
            _refuse(f"there is no file {file}", f"did you mean '{_relative(near[0])}'?" if near else hint)
        module, origin = _import_file(file, address), str(file)
    else:
        module, origin = _import(where, address), where
    target = getattr(module, class_name, None)
    if target is None:
        classes = _plugin_classes(module)
        near = difflib.get_close_matches(class_name, classes, n=1)
        known = (
            f"its plugin classes are: {', '.join(classes)}" if classes else "it has no class derived from BasePlugin"
        )
        _refuse(f"{origin} has no class '{class_name}'", *([f"did you mean '{near[0]}'?"] if near else []), known)
    plugin_type = _plugin_class(target, address)
    return FoundPlugin(plugin_name(plugin_type), plugin_type, origin)


def plugin_name(plugin_type: type[BasePlugin]) -> str:
    """The declared name, or the class name in snake case without `Plugin`."""
    if plugin_type.name:
        return plugin_type.name
    stem = plugin_type.__name__.removesuffix("Plugin") or plugin_type.__name__
    letters = [
        f"_{c.lower()}" if c.isupper() and i and not stem[i - 1].isupper() else c.lower() for i, c in enumerate(stem)
    ]
    return "".join(letters)


def _plugin_class(target: object, address: str) -> type[BasePlugin]:
    if not (isinstance(target, type) and issubclass(target, BasePlugin)):
        hint = "derive the class from dumbo.plugin_loader.BasePlugin or one of its interfaces"
        _refuse(f"{address} is not a plugin class", hint)
    return target


def _plugin_classes(module: ModuleType) -> list[str]:
    own = [
        name for name, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module.__name__
    ]
    return [name for name in own if issubclass(getattr(module, name), BasePlugin)]


def _only_class(module: ModuleType, name: str) -> type[BasePlugin]:
    classes = _plugin_classes(module)
    if len(classes) != 1:
        _refuse(f"the module of plugin '{name}' must have exactly one plugin class, and has {len(classes)}")
    plugin_type: type[BasePlugin] = getattr(module, classes[0])
    return plugin_type


def _import(module: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module == missing or module.startswith(f"{missing}."):
            hint = f"'{module}' must be importable from here: install its package, or write './file.py:ClassName'"
            _refuse(f"there is no module '{missing}'", hint)
        message = f"the plugin '{name}' needs the package '{missing}', which is not installed"
        _refuse(message, install_hint(name, missing), cause=error)
    except (Exception, SystemExit) as error:
        _refuse(f"the plugin '{name}' cannot be imported: {describe(error)}", cause=error)


def _import_file(file: Path, address: str) -> ModuleType:
    """Import a file, once, under a name of its own, so that two files of one name do not meet."""
    try:
        digest = hashlib.sha256(str(file.resolve()).encode() + file.read_bytes()).hexdigest()[:8]
    except OSError as error:
        _refuse(f"{file} cannot be read: {error.strerror}", cause=error)
    name = f"dumbo_plugin_{file.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        _refuse(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickle and dataclasses look the module up by its name
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        _refuse(f"the plugin '{address}' cannot be imported: {describe(error)}", cause=error)
    return module


def _relative(name: str) -> str:
    return name if name.startswith((".", "/")) else f"./{name}"


def _refuse(message: str, *hints: str, cause: BaseException | None = None) -> NoReturn:
    raise ConfigError([Problem(message, hints=hints)]) from cause
