"""Keys of prepared sources: texts that differ whenever the rows, or the tokens and labels made of them, may."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dumbo
from dumbo.plugin_loader import BasePlugin, DataFormatPlugin, ReaderPlugin, TrainFormatPlugin
from dumbo.redact import redact_shapes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from dumbo.config.schema import DatasetEntry
    from dumbo.plugin_manager import PluginManager

_PACKAGES = ("datasets", "jinja2", "numpy", "polars", "tokenizers", "transformers")
_TIME = re.compile("%-?[cfHIMpSTXrR]")
"""What `strftime` writes of the time of the day."""

_NOT_OF_ROWS = frozenset({"train_format", "weight", "held_out", "loss_weight"})
"""Keys of an entry on which its records do not depend."""


def rows_key(entry: DatasetEntry, plugins: PluginManager) -> str | None:
    """The key of an entry's records: of the source's bytes, of everything that is said of it, and of the code.

    None where it cannot be known: a reader that has no fingerprint of its source, or a plugin that is not dumbo's and
    declares no `cache_version`.

    Raises:
        DumboError: the source cannot be found.
    """
    of_reader = _version(plugins, ReaderPlugin, "readers", entry.type)
    of_format = _version(plugins, DataFormatPlugin, "data_formats", entry.data_format.type)
    if of_reader is None or of_format is None:
        return None
    content = plugins.fingerprint(entry.type, entry)
    if content is None:
        return None
    return digest([content, entry_options(entry), of_reader, of_format])


def encoding_of(entry: DatasetEntry, tokenizer: str, template: str | None) -> dict[str, Any]:
    """What decides on the tokens and labels of an entry's records, by the words of messages: the train format with all
    of its options, the chat `template` that it writes by, and the `tokenizer` (its digest)."""
    options = entry.train_format.model_dump(mode="json")
    return {"train_format": options, "chat template": template, "tokenizer": tokenizer}


def moment_of(encoding: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> str:
    """The day, where a template writes today's date, or the second, where it writes a time: rows of then are others
    than those of now. Empty for all other templates."""
    texts = json.dumps([encoding, tokenizer.chat_template], default=str)
    if "strftime_now" not in texts:
        return ""
    return time.strftime("%Y-%m-%d %H:%M:%S" if _TIME.search(texts) else "%Y-%m-%d")


def tokens_key(
    rows: str | None, entry: DatasetEntry, plugins: PluginManager, encoding: dict[str, Any], moment: str
) -> str | None:
    """The key of an entry's tokens and labels, where its records have the key `rows`; None where it cannot be known."""
    version = _version(plugins, TrainFormatPlugin, "train_formats", entry.train_format.type)
    return None if rows is None or version is None else digest([rows, encoding, version, moment])


def entry_options(entry: DatasetEntry) -> dict[str, Any]:
    """Everything that is said of an entry's records, without secrets: another signature is no other source."""
    options: dict[str, Any] = redact_shapes(entry.model_dump(mode="json", exclude=set(_NOT_OF_ROWS) | {"data_format"}))
    # Texts of a format may look like secrets, and decide on the rows.
    return {**options, "data_format": entry.data_format.model_dump(mode="json")}


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of all that decides on tokens and templates. The padding token is left out: it writes nothing, and
    which one is chosen depends on the room in the model's embeddings."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {"vocab": tokenizer.get_vocab()}
    for key in ("padding", "truncation"):
        state.pop(key, None)
    added = [token for token in state.get("added_tokens", ()) if token["content"] != tokenizer.pad_token]
    named = {name: str(value) for name, value in tokenizer.special_tokens_map.items() if name != "pad_token"}
    flags = {name: getattr(tokenizer, name, None) for name in ("add_bos_token", "add_eos_token", "add_prefix_space")}
    kind = type(tokenizer).__name__
    return digest([state | {"added_tokens": added}, named, flags, kind, tokenizer.chat_template])


def digest(value: Any) -> str:
    """A digest of 128 bits of what JSON can hold, in hexadecimal."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _version(plugins: PluginManager, interface: type[BasePlugin], table: str, name: str) -> str | None:
    """What stands for the code of the plugin whose `table` has `name`."""
    found = plugins.found_provider(interface, table, name)
    if found.origin == "shipped":
        return code_version()
    declared = found.type.cache_version
    return None if declared is None else f"{found.name} {declared} {code_version()}"


@cache
def code_version() -> str:
    """A digest of dumbo's own code, and of the versions of what it makes rows and tokens with."""
    folder = Path(dumbo.__file__).parent
    files = sorted(file for kind in ("*.py", "*.jinja", "*.json") for file in folder.rglob(kind))
    code = [[str(file.relative_to(folder)), hashlib.blake2b(file.read_bytes()).hexdigest()] for file in files]
    return digest([code, {name: _installed(name) for name in _PACKAGES}, platform.python_version()])


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
