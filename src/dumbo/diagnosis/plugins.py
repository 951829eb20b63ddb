"""Every installed plugin: ready, lacking its packages, or broken."""

from __future__ import annotations

from collections.abc import Iterator

from dumbo.diagnosis.findings import Finding
from dumbo.plugin_finder import FoundPlugin, find_installed, install_hint, missing_packages


def plugin_findings() -> Iterator[Finding]:
    """The ready ones in one line; a line for each that lacks something. Only a broken one is a trouble."""
    found, broken = find_installed()
    lacking = {plugin.name: lacks(plugin) for plugin in found}
    ready = [plugin for plugin in found if not lacking[plugin.name]]
    yield Finding("ready", _wrapped([_shown(plugin) for plugin in ready]))
    for plugin in found:
        if lacking[plugin.name]:
            package = lacking[plugin.name][0]
            yield Finding(
                plugin.name, f"needs {package}, which is not installed", note=install_hint(plugin.name, package)
            )
    for problem in broken:
        yield Finding("broken", problem.message, "\n".join(problem.hints) or "uninstall its package, or mend it")


def lacks(plugin: FoundPlugin) -> tuple[str, ...]:
    """The modules that the plugin needs and that are not here; one that cannot even be looked for is not here."""
    try:
        return missing_packages(plugin.type)
    except Exception:  # what finds modules may be broken in any way
        return plugin.type.packages


def _shown(plugin: FoundPlugin) -> str:
    return plugin.name if plugin.origin == "shipped" else f"{plugin.name} ({plugin.origin})"


def _wrapped(names: list[str]) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(", ".join(names), 84)) or "none"
