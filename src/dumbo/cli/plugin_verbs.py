"""Verbs that installed plugins bring."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from dumbo.errors import DumboError, PluginError
from dumbo.plugin_finder import describe, find_installed


def run_plugin_verb(verb: str, arguments: Sequence[str], core_verbs: Sequence[str]) -> int:
    """Run `verb` by the plugin that brings it.

    Raises:
        DumboError: nobody brings it, or it fails.
    """
    brought: dict[str, Any] = {}
    for found in find_installed()[0]:
        if callable(getattr(found.type, "run_command", None)):
            brought |= dict.fromkeys(getattr(found.type, "commands", ()), found.type)
    if verb not in brought:
        known = [*core_verbs, *brought]
        near = difflib.get_close_matches(verb, known, n=1)
        hint = f"did you mean 'dumbo {near[0]}'?" if near else f"verbs are: {', '.join(known)}"
        raise DumboError(f"'{verb}' is neither a verb nor a configuration file\n    {hint}")
    try:
        return int(brought[verb]().run_command(verb, arguments))
    except DumboError:
        raise
    except Exception as error:
        raise PluginError(f"the verb '{verb}' failed: {describe(error)}") from error
