"""`dumbo explain [KEY]`: what a key of the configuration means, from the line that defines it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dumbo.config.options import Option


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("key", nargs="?", default="", help="e.g. trainer.arguments.batch_size, or its last part")


def run(options: argparse.Namespace) -> int:
    """Explain a key, list a section, or say what is near."""
    import re

    from dumbo.cli.composed import composed_model
    from dumbo.config.options import all_options
    from dumbo.errors import DumboError

    known = all_options(composed_model())
    key = re.sub(r"\.\d+(?=\.|$)", "", options.key)
    found = [option for option in known if option.key == key] or [o for o in known if key and o.name == key]
    if not key:
        _print_section("", known)
    elif found:
        for option in found:
            print(describe(option))
            _print_section(option.key, known)
    else:
        raise DumboError("\n    ".join([f"there is no key '{key}'", *_hints(key, known)]))
    return 0


def _hints(key: str, known: Sequence[Option]) -> list[str]:
    """What an unknown key might have meant: another tool's word, a key that is spelled alike, or a section."""
    from difflib import get_close_matches

    from dumbo.config.explain import foreign_hint
    from dumbo.errors import key_path

    foreign = foreign_hint(key_path(key))
    if foreign:
        return [foreign]
    parent, _, name = key.rpartition(".")
    names = {option.name: option.key for option in reversed(known)}
    names |= {option.name: option.key for option in known if option.parent == parent}
    near = [names[other] for other in get_close_matches(name, names, n=3, cutoff=0.75)]
    hints = [f"did you mean {' or '.join(near)}?"] if near else []
    if key.partition(".")[0] in {option.key for option in known if option.is_section}:
        hints.append("for a plugin in a file: dumbo plugins './file.py:Class'")
    return [*hints, "'dumbo explain' lists the sections"]


def describe(option: Option) -> str:
    """A few lines about an option: what it takes, its default, what it does."""
    when = f"   (with {option.when})" if option.when else ""
    takes = "a section" if option.is_section else option.takes
    lines = [f"{option.key}{when}", f"    takes    {takes}", f"    default  {option.default}"]
    return "\n".join([*lines, f"    {option.doc}"] if option.doc else lines)


def _print_section(parent: str, known: Sequence[Option]) -> None:
    inside = list(dict.fromkeys((o.name, o.default, o.doc, o.when) for o in known if o.parent == parent))
    if not inside:
        return
    print("\nsections:" if not parent else "\nit holds:")
    width = max(len(name) for name, *_ in inside)
    for name, default, doc, when in inside:
        about = f" ({when})" if when else ""
        value = f" [{default}]" if default not in ("{}", "null") else ""
        print(f"  {name.ljust(width)}  {doc}{value}{about}")
