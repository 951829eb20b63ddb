"""Models to start from: folders nearby, those in the hub's cache, and what a name alone tells."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dumbo.local_paths import entries, is_hub_name

SMALL_HUB_MODEL = "HuggingFaceTB/SmolLM2-135M"
"""What is offered where nothing is on this machine: 135M parameters, a download of 270 MB."""
_TOKENIZER_FILES = frozenset({"tokenizer.json", "vocab.json", "vocab.txt", "tekken.json"})
_LANGUAGE_MODEL = ("ForCausalLM", "LMHeadModel")
_CHAT_NAME = re.compile(r"instruct|chat|(^|[-_])it($|[-_])", re.IGNORECASE)
_SIZE_IN_NAME = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([BM])(?![A-Za-z])", re.IGNORECASE)
_RUNS_SHOWN = 5


@dataclass(frozen=True)
class FoundModel:
    """A model that training can start from."""

    name: str
    """What is written as `model.base_model`."""
    folder: Path | None
    """Where its files are; None where they are yet to be downloaded."""
    has_chat_template: bool
    """Whether its tokenizer brings a template; of one that is not here, whether its name says that it is for chats."""
    num_bytes: int
    """Size of its weights, or the size that its name speaks of; 0 where that is not known."""
    longest: int | None = None
    """Tokens that it has positions for."""

    @property
    def about(self) -> str:
        """A few words for lists."""
        words = [size_words(self.num_bytes)] if self.num_bytes else []
        if self.folder is None:
            words = [f"about {words[0]} to download" if words else "to be downloaded from the hub"]
        elif self.folder != Path(self.name):
            words.append("in the hub's cache")
        if self.has_chat_template:
            words.append("with a chat template" if self.folder else "for chats, by its name")
        return ", ".join(words)


def nearby_models() -> list[FoundModel]:
    """Model folders here, in `models/`, and the newest of `runs/*/model`."""
    here = Path()
    runs = sorted((path for path in here.glob("runs/*/model") if path.is_dir()), key=_changed, reverse=True)
    folders = [here, *entries(here), *entries(here / "models"), *runs[:_RUNS_SHOWN]]
    return [model for folder in folders if (model := model_in(folder, str(folder))) is not None]


def cached_models() -> list[FoundModel]:
    """Language models in the hub's cache that are whole enough to have weights."""
    found = []
    for folder in entries(hub_cache()):
        if folder.name.startswith("models--"):
            name = "/".join(folder.name.split("--")[1:])
            snapshot = cached_snapshot(name)
            model = model_in(snapshot, name) if snapshot is not None else None
            found += [model] if model is not None else []
    return found


def named_model(name: str) -> FoundModel | str:
    """The model that somebody means by `name`; a text says why it is none."""
    path = Path(name).expanduser()
    if path.is_dir():
        model = model_in(path, name)
        return model or f"'{name}' is no folder of a language model with a tokenizer (config.json, *.safetensors)"
    if not is_hub_name(name):
        return f"'{name}' is neither a folder here nor a name on the hub, which is 'owner/name'"
    snapshot = cached_snapshot(name)
    if snapshot is not None and (cached := model_in(snapshot, name)) is not None:
        return cached
    return FoundModel(name, None, bool(_CHAT_NAME.search(name)), _bytes_of_name(name))


def model_in(folder: Path, name: str) -> FoundModel | None:
    """The causal language model in `folder`, or None if there is none, or no tokenizer beside it."""
    files = [file for file in entries(folder) if file.is_file()] if folder.is_dir() else []
    names = {file.name for file in files}
    weights = [file for file in files if file.suffix == ".safetensors" and not file.name.startswith("adapter_")]
    has_tokenizer = bool(names & _TOKENIZER_FILES) or any(name.endswith((".model", ".tiktoken")) for name in names)
    if "config.json" not in names or "adapter_config.json" in names or not weights or not has_tokenizer:
        return None
    config = _json_object(folder / "config.json")
    kinds = config.get("architectures") or [_LANGUAGE_MODEL[0]]
    if not any(str(kind).endswith(_LANGUAGE_MODEL) for kind in kinds):
        return None
    longest = config.get("max_position_embeddings")
    size = sum(file.stat().st_size for file in weights)
    return FoundModel(name, folder, has_chat_template(folder), size, longest if isinstance(longest, int) else None)


def has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer in `folder` brings a chat template."""
    if (folder / "chat_template.jinja").is_file() or any((folder / "additional_chat_templates").glob("*.jinja")):
        return True
    return bool(_json_object(folder / "tokenizer_config.json").get("chat_template"))


def hub_cache() -> Path:
    """The folder of the hub's cache, by the same variables as the hub's own library; it need not exist."""
    if set_folder := os.environ.get("HF_HUB_CACHE"):
        return Path(os.path.expandvars(set_folder)).expanduser()
    return hub_home() / "hub"


def hub_home() -> Path:
    """The folder that `HF_HOME` names, or its default."""
    above = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{above}/huggingface"
    return Path(os.path.expandvars(home)).expanduser()


def cached_snapshot(name: str, kind: str = "models") -> Path | None:
    """The newest snapshot of a hub repository in the cache (`kind`: `models` or `datasets`); None if it has none."""
    folder = hub_cache() / f"{kind}--{name.replace('/', '--')}" / "snapshots"
    snapshots = [path for path in entries(folder) if path.is_dir() and any(path.iterdir())]
    return max(snapshots, key=_changed, default=None)


def size_words(num_bytes: float) -> str:
    """A size as people write it: `270 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 999.5:
            return f"{num_bytes:.0f} {unit}" if num_bytes >= 9.95 or unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"


def _bytes_of_name(name: str) -> int:
    sizes = [float(number) * (1e9 if unit in "bB" else 1e6) for number, unit in _SIZE_IN_NAME.findall(name)]
    return int(2 * max(sizes, default=0))  # most are published in 16 bits


def _json_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _changed(path: Path) -> float:
    return path.stat().st_mtime


def offered_models() -> Iterator[FoundModel]:
    """What to choose from: models of this machine, and a small one from the hub where it is not among them."""
    here = [*nearby_models(), *cached_models()]
    yield from here
    if all(model.name != SMALL_HUB_MODEL for model in here):
        small = named_model(SMALL_HUB_MODEL)
        assert isinstance(small, FoundModel)
        yield small
