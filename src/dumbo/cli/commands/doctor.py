"""`dumbo doctor [CONFIG]`: what is installed, what the machine has, and what is in the way of a run."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("config", nargs="?", type=Path, help="YAML file: say what this very run needs, too")


def run(options: argparse.Namespace) -> int:
    """Look at everything, print it, and return 2 if something has to be mended."""
    from dumbo.diagnosis.devices import device_findings
    from dumbo.diagnosis.findings import MEND_FIRST, Finding, Section, as_text, troubles
    from dumbo.diagnosis.hub import hub_findings
    from dumbo.diagnosis.libraries import library_findings, probe_libraries
    from dumbo.redact import redact_own_words
    from dumbo.visible import made_visible

    probed = probe_libraries()
    sections = [
        Section("versions", tuple(library_findings(probed))),
        Section("devices", tuple(device_findings(probed))),
        Section("hub", tuple(hub_findings())),
    ]
    try:
        from dumbo.diagnosis.plugins import plugin_findings

        sections.append(Section("plugins", tuple(plugin_findings())))
        if options.config is not None:
            from dumbo.diagnosis.run_needs import run_findings

            sections.append(Section(str(options.config), tuple(run_findings(options.config, probed))))
    except ImportError as error:  # dumbo itself stands on it
        sections.append(Section("plugins", [Finding("plugins", f"cannot be looked at: {error}", MEND_FIRST)]))
    print(made_visible(redact_own_words("\n".join(as_text(sections)))))
    count = troubles(sections)
    if not count:
        print("\nnothing has to be mended")
        return 0
    print(f"\n{count} {'thing has' if count == 1 else 'things have'} to be mended: the lines with !")
    return 2
