"""Finds the base model of an adapter and looks at its files: the configuration, and where each tensor lies."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dumbo.errors import Problem, RunError
from dumbo.left_out_zeros import refuse_left_out
from dumbo.local_paths import is_hub_name, near_paths
from dumbo.merging.tensor_files import StoredTensor, read_header

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_DESCRIPTION = ("*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py", "LICENSE*", "NOTICE*")
_ELSEWHERE = ("*/*.json", "*/*.model", "*/*.txt", "*/*.py")


@dataclass(frozen=True)
class Base:
    """A model's folder."""

    name: str
    """As the adapter has it."""
    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    """By their names on disk, shard after shard."""
    notes: Mapping[str, str]
    """The notes in the headers of its files."""

    @property
    def model_type(self) -> str:
        """`llama`, `gpt2` ..."""
        return str(self.config.get("model_type", ""))

    @property
    def files(self) -> list[str]:
        """The names of its weight files, in their order."""
        return list(dict.fromkeys(tensor.file.name for tensor in self.tensors.values()))


def open_base(name: str, revision: str | None, adapter: Path, say: Callable[[str], None]) -> Base:
    """The base model `name` of the adapter in the folder `adapter`: on this machine, or from the hub.

    Raises:
        RunError: it is gone, not whole, or quantized on disk.
    """
    folder = Path(name)
    if folder.is_dir():
        if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            raise _error(f"the base model of '{adapter}', '{name}', is an adapter itself", "merge that one first")
    elif is_hub_name(name):
        folder = fetch(name, revision, say)
    else:
        again = f"copy it back, or write where it is into base_model_name_or_path in {adapter / 'adapter_config.json'}"
        raise _error(
            f"the base model of '{adapter}' is missing: there is no folder '{name}'",
            *near_paths(folder, folders=True),
            again,
        )
    refuse_left_out(folder, "dumbo merge")
    config = _config_of(folder)
    return Base(name, folder, config, *stored_tensors(folder))


def _config_of(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise _error(f"the base model's {folder / 'config.json'} cannot be read: {reason}") from error
    if not isinstance(config, dict):
        raise _error(f"{folder / 'config.json'} is no JSON object")
    quantized = config.get("quantization_config")
    if quantized:
        method = quantized.get("quant_method", "an unknown method") if isinstance(quantized, dict) else quantized
        raise _error(
            f"the base model '{folder}' is quantized on disk ({method}), and a sum cannot be rounded to that again",
            "merge onto the model that it was made from: --base FOLDER",
            "or load base and adapter with PEFT where that format is known, and dequantize",
        )
    return config


def stored_tensors(folder: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Every tensor of the model in `folder`, from a single file or from the shards of an index; and the files' notes.

    Raises:
        RunError: they are not whole, or there are none.
    """
    index = folder / INDEX_FILE
    found: dict[str, StoredTensor] = {}
    notes: dict[str, str] = {}
    if (folder / SINGLE_FILE).is_file():
        return read_header(folder / SINGLE_FILE)
    if not index.is_file():
        others = sorted(file.name for pattern in ("*.bin", "*.gguf", "*.pth") for file in folder.glob(pattern))
        hint = f"it has {', '.join(others[:3])}: save it again with save_pretrained" if others else "copy it again"
        raise _error(f"the base model '{folder}' has no {SINGLE_FILE} or {INDEX_FILE}", hint)
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = list(dict.fromkeys(str(file) for file in weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _error(f"{index} has no 'weight_map' from weights to files") from error
    outside = [name for name in names if Path(name).is_absolute() or len(Path(name).parts) != 1]
    if outside:
        raise _error(f"{index} names a file outside of its folder: {outside[0]}")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        message = f"{folder}: {len(missing)} of {len(names)} weight files are missing: {', '.join(missing[:4])}"
        raise _error(message, "copy or download the model again")
    for name in sorted(names):
        tensors, of_file = read_header(folder / name)
        notes |= of_file
        found |= {key: tensor for key, tensor in tensors.items() if weight_map.get(key) == name}
    lost = [key for key in weight_map if key not in found]
    if lost:
        raise _error(f"{index} lists {len(lost)} weights that the files lack: {', '.join(lost[:4])}")
    return found, notes


def fetch(name: str, revision: str | None, say: Callable[[str], None]) -> Path:
    """The folder of a model in the hub's cache, after a download where it is not there.

    Raises:
        RunError: the hub says no, or cannot be reached.
    """
    from huggingface_hub import snapshot_download

    from dumbo.bridge.hub_errors import Repository, explain

    weights = ("model*.safetensors", INDEX_FILE)
    try:
        say(f"base model: {name} from the hub or its cache")
        wanted = [*_DESCRIPTION, *weights]
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=list(_ELSEWHERE)))
    except Exception as error:
        raise explain(error, Repository("model", name, revision)) from error


def _error(message: str, *hints: str) -> RunError:
    return RunError(str(Problem(message, hints=hints)))
