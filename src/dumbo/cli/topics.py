"""Where the topics of `dumbo docs` lie: the package's own pages, and the README of every shipped plugin."""

from __future__ import annotations

import difflib
from pathlib import Path

from dumbo.errors import DumboError
from dumbo.plugin_finder import shipped_names

_PACKAGE = Path(__file__).parent.parent


def topics() -> dict[str, Path]:
    """Topic -> Markdown file: the pages in the order of their reading, then the plugins."""
    order = ["quickstart", "starting", "config", "data", "chat_templates", "inspect", "training", "packing"]
    order += ["merging", "report", "plugins", "errors", "security", "distributed"]
    pages = {path.stem: path for path in sorted((_PACKAGE / "docs").glob("*.md"))}
    first = {name: pages.pop(name) for name in order if name in pages}
    plugins = {name: _PACKAGE / "plugins" / name / "README.md" for name in shipped_names()}
    return first | pages | {name: file for name, file in plugins.items() if file.exists()}


def first_line(file: Path) -> str:
    """The title of a page."""
    return file.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")


def read_topic(name: str) -> str:
    """The text of a topic.

    Raises:
        DumboError: there is none of that name.
    """
    known = topics()
    if name == "options":
        return options_page()
    if name in known:
        return known[name].read_text(encoding="utf-8").rstrip()
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"topics are: {', '.join([*known, 'options'])}"
    raise DumboError(f"there is no topic '{name}'\n    {hint}")


def options_page() -> str:
    """Every option of the core and of the installed plugins, as Markdown, made from what defines them."""
    from dumbo.cli.composed import composed_model
    from dumbo.config.options import all_options

    lines = ["# Every key of the configuration"]
    options = all_options(composed_model())
    for section in dict.fromkeys(option.parent for option in options):
        lines += ["", f"## {section or 'top level'}", ""]
        for option in options:
            if option.parent == section:
                when = f" (with {option.when})" if option.when else ""
                takes = "a section" if option.is_section else f"{option.takes}; default {option.default}"
                lines.append(f"- `{option.name}`{when}: {takes}. {option.doc}")
    return "\n".join(lines)
