"""Flags in the style of other tools (`--learning_rate 3`, `--config run.yaml`), and what is written here instead."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Sequence
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """A parser that complains in one message, and takes no flag by its first letters."""

    def __init__(self, **settings: object) -> None:
        super().__init__(allow_abbrev=False, **settings)  # type: ignore[arg-type]

    def flags(self) -> set[str]:
        """The flags that it knows."""
        return {flag for action in self._actions for flag in action.option_strings}

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and end with exit code 2."""
        # With the positions mixed among the flags, argparse also calls those required that may be left out.
        message = message.removesuffix(", KEY=VALUE")
        self.exit(2, f"{self.prog}: {message}\n    '{self.prog} --help' shows how it is written\n")


def refuse_strange_flags(words: Sequence[str], known: Collection[str], verb: str) -> None:
    """Raise a `DumboError` for the first word that is a flag and not among the `known` ones."""
    for index, word in enumerate(words):
        if word == "--":
            return
        flag, equals, value = word.partition("=")
        if len(word) < 2 or not word.startswith("-") or flag in known or word[1:].replace(".", "").isdecimal():
            continue
        if not equals:
            value = words[index + 1] if index + 1 < len(words) and not words[index + 1].startswith("--") else ""
        _refuse(flag, value, verb, known)


def _refuse(flag: str, value: str, verb: str, known: Collection[str]) -> NoReturn:
    from difflib import get_close_matches

    from dumbo.errors import DumboError

    near = get_close_matches(flag, known, n=1, cutoff=0.8)
    hint = f"did you mean '{near[0]}'?" if near else _hint(flag.lstrip("-"), value, verb)
    raise DumboError(f"dumbo has no flag '{flag}'\n    {hint}")


def _hint(name: str, value: str, verb: str) -> str:
    if name in ("config", "config_file", "config-file", "c", "f"):
        command = "dumbo" if verb == "train" else f"dumbo {verb}"
        return f"write {command} {value or 'run.yaml'}"
    from difflib import get_close_matches

    from dumbo.cli.composed import composed_model
    from dumbo.config.explain import foreign_hint
    from dumbo.config.options import all_options
    from dumbo.errors import key_path

    name = name.replace("-", "_")
    options = [option for option in all_options(composed_model()) if not option.is_section]
    names = [option.name for option in options]
    foreign = foreign_hint(key_path(name), is_option=name in names)
    if foreign:
        return foreign
    near = get_close_matches(name.rpartition(".")[2], names, n=1, cutoff=0.8)
    meant = [option.key for option in options if option.key == name] or [o.key for o in options if o.name in near]
    if not meant:
        return f"'dumbo {verb} --help' lists the flags; options are written section.key=value"
    value = value or "..."
    keys = dict.fromkeys(key.replace("datasets.", "datasets.0.", 1) for key in meant)
    return f"write {' or '.join(f'{key}={value}' for key in keys)}"
