"""Checks a first configuration as `dumbo check` does, and writes it where nothing is yet."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from dumbo.configure import configure
from dumbo.errors import ConfigError, DumboError
from dumbo.launch import Launch

SUFFIXES = (".yaml", ".yml")


def require_new_file(file: Path) -> None:
    """Raise a `DumboError` for a file that is there already, or cannot be one."""
    if file.suffix not in SUFFIXES:
        raise DumboError(f"'{file}' must end in .yaml\n    write dumbo init {file.with_name(file.name + '.yaml')}")
    if file.exists() or file.is_symlink():
        raise DumboError(f"{file} is there already, and is not overwritten\n    write dumbo init {_free_name(file)}")
    if not file.parent.is_dir():
        raise DumboError(f"there is no folder {file.parent}\n    make it first: mkdir -p {file.parent}")


def require_valid(text: str) -> None:
    """Raise a `ConfigError`, with keys but without lines, for a configuration that could not run here."""
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "run.yaml"
        draft.write_text(text, encoding="utf-8")
        try:
            configure(draft, (), Launch())
        except ConfigError as error:
            raise ConfigError([replace(problem, place=None) for problem in error.problems]) from error


def write_new(file: Path, text: str) -> None:
    """Write `text`, unless somebody else was quicker."""
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        require_new_file(file)
    except OSError as error:
        raise DumboError(f"{file} cannot be written: {error.strerror}") from error


def _free_name(file: Path) -> Path:
    number, free = 2, file
    while free.exists():
        free = file.with_name(f"{file.stem}-{number}{file.suffix}")
        number += 1
    return free
