"""Nested values as JSON with their tensors in a safetensors file: nothing in it has to be unpickled."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_MARK = "$"
"""Begins the key of an object that stands for something that JSON has not."""
_MADE_OF_TENSORS = MappingProxyType(
    {
        "OptimState8bit": "torchao.optim.subclass_8bit",
        "OptimState4bit": "torchao.optim.subclass_4bit",
        "OptimStateFp8": "torchao.optim.subclass_fp8",
    }
)
"""Tensors that are made of others, by the names of their classes: the module of each. Nothing else is imported."""


def write_tree(value: Any, folder: Path, name: str) -> None:
    """Write `value` as `name.json` and `name.safetensors` in `folder`.

    It may have None, texts, bytes, numbers, lists, tuples, sets, mappings with plain keys, arrays and tensors, those of
    torchao's optimizers among them.

    Raises:
        TypeError: it has something else; the message says where.
    """
    from safetensors.torch import save_file

    tree, tensors = encode(value)
    (folder / f"{name}.json").write_text(json.dumps(tree), encoding="utf-8")
    save_file(tensors, folder / f"{name}.safetensors")


def read_tree(folder: Path, name: str) -> Any:
    """What `write_tree` wrote; its tensors are on the CPU."""
    from safetensors.torch import load_file

    tree = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return decode(tree, load_file(folder / f"{name}.safetensors"))


def encode(value: Any) -> tuple[Any, dict[str, Tensor]]:
    """`value` for JSON, and the tensors that it names: contiguous, and none shares memory with another."""
    encoder = _Encoder()
    return encoder.encode(value, ""), encoder.tensors


class _Encoder:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._memory: set[int] = set()

    def encode(self, value: Any, path: str) -> Any:
        import numpy as np
        import torch

        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, Mapping):
            return self._mapping(value, path)
        if isinstance(value, list | tuple | set | frozenset):
            items = [self.encode(item, f"{path}.{place}") for place, item in enumerate(value)]
            return items if isinstance(value, list) else {_kind(value): items}
        if isinstance(value, bytes):
            return {"$bytes": base64.b64encode(value).decode("ascii")}
        if isinstance(value, np.ndarray | np.generic):
            key = "$array" if isinstance(value, np.ndarray) else "$number"
            return {key: self._keep(torch.from_numpy(np.array(value)), path)}
        if isinstance(value, torch.dtype):
            return {"$dtype": str(value).removeprefix("torch.")}
        if type(value) in (torch.Tensor, torch.nn.Parameter):
            return {"$tensor": self._keep(value.detach(), path)}
        if _MADE_OF_TENSORS.get(type(value).__name__) == type(value).__module__:
            names, settings = value.__tensor_flatten__()
            parts = {name: self.encode(getattr(value, name), f"{path}.{name}") for name in names}
            return {"$made_of": [type(value).__name__, parts, self.encode(list(settings), path)]}
        where = f"'{path.removeprefix('.')}'" if path else "it"
        raise TypeError(f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which cannot be kept")

    def _mapping(self, value: Mapping[Any, Any], path: str) -> Any:
        if all(isinstance(key, str) and not key.startswith(_MARK) for key in value):
            return {key: self.encode(item, f"{path}.{key}") for key, item in value.items()}
        pairs = [[self.encode(key, path), self.encode(item, f"{path}.{key}")] for key, item in value.items()]
        return {"$mapping": pairs}

    def _keep(self, tensor: Tensor, path: str) -> str:
        name = path.removeprefix(".") or "value"
        while name in self.tensors:
            name += "_"
        tensor = tensor.contiguous()
        memory = tensor.untyped_storage()
        if memory.data_ptr() in self._memory or memory.nbytes() != tensor.numel() * tensor.element_size():
            tensor = tensor.clone()
        self._memory.add(tensor.untyped_storage().data_ptr())
        self.tensors[name] = tensor
        return name


def _kind(value: tuple[Any, ...] | set[Any] | frozenset[Any]) -> str:
    return "$tuple" if isinstance(value, tuple) else "$set"


def decode(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `encode`; frozen sets come back as sets, and every kind of mapping as a dictionary."""
    if isinstance(tree, list):
        return [decode(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if len(tree) == 1:
        [(key, value)] = tree.items()
        if key.startswith(_MARK):
            return _special(key, value, tensors)
    return {key: decode(item, tensors) for key, item in tree.items()}


def _special(key: str, value: Any, tensors: Mapping[str, Tensor]) -> Any:
    import torch

    match key:
        case "$mapping":
            return {decode(name, tensors): decode(item, tensors) for name, item in value}
        case "$tuple":
            return tuple(decode(item, tensors) for item in value)
        case "$set":
            return {decode(item, tensors) for item in value}
        case "$bytes":
            return base64.b64decode(value)
        case "$tensor":
            return tensors[value]
        case "$array":
            return tensors[value].numpy()
        case "$number":
            return tensors[value].numpy()[()]
        case "$made_of":
            name, parts, settings = value
            return _made_of(name, parts, settings, tensors)
        case "$dtype" if isinstance(getattr(torch, value), torch.dtype):
            return getattr(torch, value)
    raise ValueError(f"'{key}' is nothing that can be kept")


def _made_of(name: str, parts: Any, settings: Any, tensors: Mapping[str, Tensor]) -> Any:
    kind = getattr(import_module(_MADE_OF_TENSORS[name]), name)
    return kind.__tensor_unflatten__(decode(parts, tensors), decode(settings, tensors))
