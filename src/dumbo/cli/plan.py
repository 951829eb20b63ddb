"""`dumbo train --plan`: the configuration as it would run, who sits where, and in which order."""

from __future__ import annotations

from dumbo.configure import Configured
from dumbo.plugin_interfaces import INTERFACES, Claim
from dumbo.run_folder import resolved_tree, yaml_text


def print_plan(configured: Configured) -> None:
    """Print what would happen; nothing is loaded."""
    print(yaml_text(resolved_tree(configured.source)))
    print("plugins, in the order in which their hooks are called:")
    width = max(len(interface.hook) for interface in INTERFACES)
    for interface in INTERFACES:
        names = configured.plugins.names(interface.type)
        if names or interface.claim is Claim.EXACTLY_ONE:
            print(f"  {interface.hook.ljust(width)}  {', '.join(names)}")
    origins = {plugin.name: plugin.origin for plugin in configured.plugins.found if plugin.origin != "shipped"}
    for name, origin in origins.items():
        print(f"'{name}' comes from {origin}")
