"""`dumbo plugins [NAME]`: what is installed, where it comes from, what it provides, needs and conflicts with."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dumbo.plugin_finder import FoundPlugin


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("name", nargs="?", help="one plugin in full; also './file.py:Class'")


def run(options: argparse.Namespace) -> int:
    """List all plugins, or print one with its options."""
    import sys
    from pathlib import Path

    from dumbo.cli.main import VERBS
    from dumbo.cli.plugin_verbs import brought_verbs
    from dumbo.plugin_finder import find_installed, find_plugin

    if options.name:
        plugin = find_plugin(options.name, Path())
        _print_in_full(plugin)
        problems = brought_verbs([plugin], tuple(VERBS))[1]
        print("".join(f"{problem}\n" for problem in problems), end="", file=sys.stderr)
        return 2 if problems else 0
    found, problems = find_installed()
    problems += brought_verbs(found, tuple(VERBS))[1]
    for plugin in found:
        print("\n".join(_lines(plugin)), end="\n\n")
    print("A plugin of your own: 'dumbo docs plugins'. One in full: 'dumbo plugins NAME'.")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 0


def _lines(plugin: FoundPlugin) -> Iterator[str]:
    from dumbo.plugin_finder import install_hint, missing_packages
    from dumbo.plugin_interfaces import INTERFACES
    from dumbo.plugin_rules import claims

    summary = (plugin.type.__doc__ or "").strip().split("\n")[0]
    yield f"{plugin.name}  ({plugin.origin})  {summary}"
    provided = [interface.hook for interface in INTERFACES if claims(plugin.type, interface)]
    yield f"    provides   {', '.join(provided) or 'nothing'}"
    for table, what in (("readers", "readers"), ("data_formats", "data formats"), ("train_formats", "train formats")):
        if getattr(plugin.type, table, None):
            yield f"    {what:<10} {', '.join(getattr(plugin.type, table))}"
    for verb, summary in getattr(plugin.type, "commands", {}).items():
        yield f"    verb       dumbo {verb}: {summary}"
    facts = {"section": plugin.type.section, "requires": plugin.type.requires, "conflicts": plugin.type.conflicts}
    for name, value in facts.items():
        if value:
            yield f"    {name:<10} {value if isinstance(value, str) else ', '.join(sorted(value))}"
    missing = missing_packages(plugin.type)
    if missing:
        yield f"    missing    {', '.join(missing)}: {install_hint(plugin.name, missing[0])}"


def _print_in_full(plugin: FoundPlugin) -> None:
    from dumbo.cli.commands.explain import describe
    from dumbo.config.compose import compose
    from dumbo.config.options import all_options

    print("\n".join(_lines(plugin)))
    core = {(option.key, option.when) for option in all_options(compose([]))}
    added = [o for o in all_options(compose([plugin.type])) if (o.key, o.when) not in core]
    shared = {"datasets.data_format", "datasets.train_format", "datasets.type"}
    for option in added:
        if option.key not in shared:
            print("\n" + describe(option))
