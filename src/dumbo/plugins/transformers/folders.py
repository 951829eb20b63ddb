"""Where the name of a model or tokenizer leads: to a folder, which is looked into, or to a repository on the hub."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from dumbo.errors import KeyPath, Problem, key_path
from dumbo.local_paths import entries, is_hub_name, near_paths

VOCABULARY = re.compile(r"tokenizer\.json|vocab\.(json|txt)|tekken\.json|.*\.(model|tiktoken)")
BYTE_TOKENIZERS = frozenset({"ByT5Tokenizer", "CanineTokenizer", "PerceiverTokenizer"})
"""Tokenizers whose vocabulary is the 256 bytes, so that no file holds it."""


def place_of(key: str) -> KeyPath:
    """Where the option `key` is, for messages; nowhere for a model that no option names, whose `key` is empty."""
    return key_path(key) if key else ()


def as_folder(name: str) -> Path | None:
    """The folder that `name` means, whether it is there or not; None for a name on the hub."""
    path = Path(name).expanduser()
    return path if name.startswith((".", "/", "~")) or path.exists() else None


def name_problem(name: str, key: str) -> Problem | None:
    """What is wrong with `name`, given at `key`: a folder that is not there, or no name that the hub could know."""
    if is_hub_name(name):
        return None
    folder = as_folder(name)
    where = place_of(key)
    if folder is None:
        message = f"'{name}' is neither a folder here nor a name on the hub, which is 'owner/name'"
        return Problem(message, where, hints=near_folders(Path(name), say_start=True))
    if folder.is_file():
        return Problem(f"'{name}' is a file; write the folder that it lies in", where)
    if not folder.is_dir():
        return Problem(f"there is no folder '{name}'", where, hints=near_folders(folder, say_start=True))
    return None


def near_folders(path: Path, *, say_start: bool = False) -> tuple[str, ...]:
    """Hints for a folder that is not there: names like it beside it, and the same path from other folders nearby.

    With `say_start` also where relative paths start, should nothing be found there.
    """
    near = near_paths(path, folders=True)
    if path.is_absolute():
        return near
    here = Path.cwd()
    found = [f"'{start / path}'" for start in (here.parent, *entries(here)) if (start / path).is_dir()]
    there = f"; there is {' and '.join(found[:2])}" if found else ""
    return (*near, f"relative paths start at {here}{there}") if found or say_start else near


def read_object(file: Path) -> dict[str, Any]:
    """The JSON object in `file`; `ValueError` says in a line what is wrong with it."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file} must hold a JSON object")
    return value


def model_folder_problem(folder: Path, name: str, key: str) -> Problem | None:
    """What keeps `folder` from being that of a model: no `config.json`, a broken one, or an adapter."""
    where = place_of(key)
    if (folder / "adapter_config.json").is_file():
        return _adapter_problem(folder, name, where)
    if not (folder / "config.json").is_file():
        return Problem(f"'{name}' holds no config.json, so it is not a model that Transformers can load", where)
    try:
        read_object(folder / "config.json")
    except ValueError as error:
        return Problem(str(error), where)
    return None


def _adapter_problem(folder: Path, name: str, where: KeyPath) -> Problem:
    # Transformers would load the base model that the adapter names, and wrap it, whatever else lies in the folder.
    message = f"'{name}' holds an adapter (adapter_config.json), and a base model must be whole"
    try:
        base = read_object(folder / "adapter_config.json").get("base_model_name_or_path")
    except ValueError:
        base = None
    merge = f"merge it into its base model first (dumbo merge {name}), and write the folder of the merged model"
    return Problem(message, where, hints=(merge, f"its base model is '{base}'") if base else (merge,))


def tokenizer_folder_problem(folder: Path, name: str, key: str, trusted: bool) -> Problem | None:
    """What keeps `folder` from being that of a tokenizer; `trusted` code may have files of its own."""
    settings: dict[str, Any] = {}
    where = place_of(key)
    if (folder / "tokenizer_config.json").is_file():
        try:
            settings = read_object(folder / "tokenizer_config.json")
        except ValueError as error:
            return Problem(str(error), where)
    byte_level = settings.get("tokenizer_class") in BYTE_TOKENIZERS
    custom = trusted and "auto_map" in settings
    if byte_level or custom or any(VOCABULARY.fullmatch(file.name) for file in folder.iterdir()):
        return None
    hint = "model.tokenizer.path: the folder or hub name of a tokenizer"
    return Problem(
        f"'{name}' holds no tokenizer (tokenizer.json, tokenizer.model, vocab.json ...)", where, hints=(hint,)
    )


def has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer in `folder` brings a chat template, in any of the places where Transformers looks."""
    if (folder / "chat_template.jinja").is_file() or any((folder / "additional_chat_templates").glob("*.jinja")):
        return True
    try:
        return bool(read_object(folder / "tokenizer_config.json").get("chat_template"))
    except ValueError:
        return False
