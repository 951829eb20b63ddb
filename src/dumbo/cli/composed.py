"""The configuration class for a verb that explains: of a file's plugins, or of all that are installed."""

from __future__ import annotations

from pathlib import Path

from dumbo.config.compose import compose
from dumbo.config.schema import RunConfig
from dumbo.config.source import load_source
from dumbo.errors import ConfigError
from dumbo.plugin_finder import find_installed, find_plugin


def composed_model(config: Path | None = None) -> type[RunConfig]:
    """`RunConfig` with the sections of the plugins that `config` lists, or of every installed plugin.

    Raises:
        ConfigError: the file cannot be read, or lists a plugin that cannot be found.
    """
    if config is None:
        return compose([plugin.type for plugin in find_installed()[0]])
    source = load_source(config)
    if not source.tree:
        raise ConfigError(source.problems)
    names = source.tree.get("plugins")
    listed = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return compose([find_plugin(name, config.parent).type for name in dict.fromkeys(listed)])
