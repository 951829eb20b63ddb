"""Verbs that installed plugins bring."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from dumbo.blame import describe
from dumbo.errors import DumboError, PluginError, Problem
from dumbo.plugin_finder import FoundPlugin, find_installed
from dumbo.plugin_interfaces import INTERFACES
from dumbo.plugin_loader import CommandPlugin
from dumbo.plugin_results import check_result


def brought_verbs(
    found: Sequence[FoundPlugin], core_verbs: Sequence[str]
) -> tuple[dict[str, FoundPlugin], list[Problem]]:
    """The plugin that brings each verb, and what is wrong with the others: dumbo's own verbs go before plugins'."""
    brought: dict[str, FoundPlugin] = {}
    problems: list[Problem] = []
    for plugin in found:
        for verb in getattr(plugin.type, "commands", ()):
            if verb in core_verbs:
                message = f"plugin '{plugin.name}' brings the verb '{verb}', which is dumbo's own and never reaches it"
                problems.append(Problem(message, hints=("give the verb another name",)))
            elif verb in brought:
                message = f"the plugins '{brought[verb].name}' and '{plugin.name}' both bring the verb '{verb}'"
                problems.append(Problem(message, hints=("uninstall one of them",)))
            else:
                brought[verb] = plugin
    return brought, problems


def run_plugin_verb(verb: str, arguments: Sequence[str], core_verbs: Sequence[str]) -> int:
    """Run `verb` by the plugin that brings it.

    Raises:
        DumboError: nobody brings it, or it fails.
    """
    found, broken = find_installed()
    brought, problems = brought_verbs(found, core_verbs)
    clashes = [problem for problem in problems if f"the verb '{verb}'" in problem.message]
    if clashes:
        raise PluginError("\n".join(str(problem) for problem in clashes))
    if verb not in brought:
        known = [*core_verbs, *brought]
        near = difflib.get_close_matches(verb, known, n=1)
        hint = f"did you mean 'dumbo {near[0]}'?" if near else f"verbs are: {', '.join(known)}"
        message = f"'{verb}' is neither a verb nor a configuration file\n    {hint}"
        raise DumboError("\n".join([message, *(str(problem) for problem in broken)]))
    plugin = brought[verb]
    try:
        code = plugin.type().run_command(verb, arguments)  # type: ignore[attr-defined]
    except DumboError:
        raise
    except Exception as error:
        raise PluginError(f"the verb '{verb}' failed: {describe(error, plugin.type)}") from error
    spec = next(spec for spec in INTERFACES if spec.type is CommandPlugin)
    check_result(plugin.name, spec, code)
    return int(code)
