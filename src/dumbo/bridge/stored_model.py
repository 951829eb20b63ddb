"""A model whose weights stay on disk: each is read, and made of what is stored, when it is asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from dumbo.bridge.merge_names import Group, groups_of, tied_weights

DTYPES = (
    *(("F64", torch.float64), ("F32", torch.float32), ("F16", torch.float16), ("BF16", torch.bfloat16)),
    *(("I64", torch.int64), ("I32", torch.int32), ("I16", torch.int16), ("I8", torch.int8), ("U8", torch.uint8)),
    *(("BOOL", torch.bool), ("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)),
)
"""The types of numbers by their names in a safetensors header."""
Rounding = Callable[[str, Tensor], Tensor]
_PIECE_BYTES = 8 << 20


@dataclass(frozen=True)
class OnDisk:
    """A tensor in a file: its type, shape, and the bytes that it takes."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    size: int

    def read(self) -> Tensor:
        """The tensor, in its type."""
        return self._read_as(self.dtype)

    def read_wide(self) -> Tensor:
        """The tensor, in float32 where its numbers are floating: it is never there twice."""
        return self._read_as(torch.float32 if self.dtype.is_floating_point else self.dtype)

    def _read_as(self, dtype: torch.dtype) -> Tensor:
        """By pieces; nothing stays in a mapping of the file, which would count as memory of this process."""
        made = torch.empty(self.shape, dtype=dtype)
        flat, size = made.view(-1), self.dtype.itemsize
        piece = torch.empty(min(_PIECE_BYTES, self.size) // size, dtype=self.dtype)
        raw = piece.view(torch.uint8).numpy().data
        with self.file.open("rb", buffering=0) as stream:
            stream.seek(self.start)
            for first in range(0, flat.numel(), max(1, piece.numel())):
                count = min(piece.numel(), flat.numel() - first)
                self._fill(stream, raw[: count * size])
                flat[first : first + count] = piece[:count]
        return made

    def _fill(self, stream: FileIO, view: memoryview) -> None:
        done = 0
        while done < len(view):
            count = stream.readinto(view[done:])
            if not count:
                raise ValueError(f"{self.file} ended while it was read")
            done += count


def tensors_in(folder: Path) -> dict[str, OnDisk]:
    """Every tensor of the model in `folder`, by its name on disk."""
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    names = [single.name] if single.is_file() else sorted(set(json.loads(index.read_text())["weight_map"].values()))
    found: dict[str, OnDisk] = {}
    types = dict(DTYPES)
    for name in names:
        with (folder / name).open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        for tensor, entry in header.items():
            begin, end = entry["data_offsets"]
            shape = tuple(entry["shape"])
            found[tensor] = OnDisk(folder / name, types[entry["dtype"]], shape, 8 + length + begin, end - begin)
    return found


def empty_model(config: PreTrainedConfig, trusted: bool) -> PreTrainedModel:
    """The model of `config` with weights that take no memory; buffers that are computed are there."""
    with init_empty_weights(include_buffers=False):
        build: Any = AutoModelForCausalLM.from_config
        model: PreTrainedModel = build(config, trust_remote_code=trusted, dtype=torch.float32)
    model.tie_weights()
    model.train(False)
    made: dict[int, nn.Parameter] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        owner = model.get_submodule(name.rpartition(".")[0])
        owner._parameters[name.rpartition(".")[2]] = made.setdefault(id(parameter), nothing(tuple(parameter.shape)))
    return model


def nothing(shape: tuple[int, ...]) -> nn.Parameter:
    """A weight of this shape that is one number in memory.

    Not one on the device `meta`: PEFT would move what it loads for it there, and lose it.
    """
    return nn.Parameter(torch.zeros(()).expand(shape), requires_grad=False)


class FromDisk:
    """The weights of a model in a folder, for the model that they belong to."""

    def __init__(self, model: PreTrainedModel, folder: Path, change: Rounding | None = None) -> None:
        """`change` may make another tensor of a weight when it is read: it is given the name in memory."""
        self._tensors = tensors_in(folder)
        self._config, self._model, self._change = model.config, model, change
        self._groups = groups_of(model, list(self._tensors))
        self._tied = tied_weights(model)
        self._shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        self._owners = {
            name: (model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2])
            for name, _ in model.named_parameters(remove_duplicate=False)
        }
        """The modules of the model itself, which stay what they are when PEFT wraps them."""
        self._buffers = {name for name, _ in model.named_buffers()}
        self._load_buffers()

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors in the folder, by their names on disk."""
        return tuple(self._tensors)

    @contextmanager
    def attached(self, outer: nn.Module, inside: Callable[[str], nn.Module]) -> Iterator[None]:
        """Read weights while `outer`, the model or what wraps it, computes. `inside` finds the module of a name."""
        handles = []
        for unit, names in self._units().items():
            module = inside(unit)
            handles.append(module.register_forward_pre_hook(self._reader(names)))
            handles.append(module.register_forward_hook(self._dropper(names)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _units(self) -> dict[str, list[str]]:
        """The layers, whose weights are read together, and every other module that has weights of its own; with the
        names of these weights."""
        layers = [
            f"{name}.{index}" if name else index
            for name, module in self._model.named_modules()
            if isinstance(module, nn.ModuleList)
            for index, _ in module.named_children()
        ]
        units: dict[str, list[str]] = {}
        for name in self._owners:
            layer = next((layer for layer in layers if name.startswith(f"{layer}.")), None)
            units.setdefault(layer if layer is not None else name.rpartition(".")[0], []).append(name)
        return units

    def _reader(self, names: Sequence[str]) -> Callable[..., None]:
        def read(module: nn.Module, inputs: Any) -> None:
            values = self.weights(names)
            for name in names:
                owner, own = self._owners[name]
                owner._parameters[own] = nn.Parameter(values.pop(name), requires_grad=False)

        return read

    def _dropper(self, names: Sequence[str]) -> Callable[..., None]:
        def drop(module: nn.Module, inputs: Any, output: Any) -> None:
            for name in names:
                owner, own = self._owners[name]
                owner._parameters[own] = nothing(self._shapes[name])

        return drop

    def weights(self, names: Sequence[str]) -> dict[str, Tensor]:
        """The weights in memory of these names, in float32.

        Raises:
            ValueError: the folder lacks one.
        """
        found: dict[str, Tensor] = {}
        for first, group in self._wanted(names):
            found |= self._made(first, group)
        for name in names:
            if name not in found and name in self._tied:
                source = self._tied[name]
                found |= {name: self._sourced(source, name)}
        missing = [name for name in names if name not in found]
        if missing:
            raise ValueError(f"{len(missing)} weights are missing, the first is {missing[0]}")
        return {name: self._fitted(name, found[name]) for name in names}

    def _sourced(self, source: str, name: str) -> Tensor:
        made = self._made(source, self._groups[source])
        return made[source] if source in made else made[name]

    def _wanted(self, names: Sequence[str]) -> Iterator[tuple[str, Group]]:
        """The groups that these names may come from: their own, and those that make several of a module's weights."""
        wanted = set(names)
        above = {name.rpartition(".")[0].rpartition(".")[0] for name in names} | {
            name.rpartition(".")[0] for name in names
        }
        for first, group in self._groups.items():
            several = group.converter is not None and any(first.startswith(f"{each}.") for each in above)
            if first in wanted or several:
                yield first, group

    def _made(self, first: str, group: Group) -> dict[str, Tensor]:
        if group.converter is None:
            tensor = self._tensors[group.sources[0][0]]
            return {first: tensor.read_wide() if self._change is None else tensor.read()}
        converter = group.filled(first, lambda source: self._tensors[source].read)
        made = converter.convert(first, model=self._model, config=self._config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    def _fitted(self, name: str, value: Tensor) -> Tensor:
        if self._change is not None:
            value = self._change(name, value)
        value = value.float() if value.is_floating_point() else value
        rows, wanted = value.shape[:1], self._shapes[name]
        if tuple(value.shape) != wanted and tuple(value.shape[1:]) == wanted[1:] and rows[0] < wanted[0]:
            new = value.mean(dim=0, keepdim=True).expand(wanted[0] - rows[0], *value.shape[1:])
            value = torch.cat([value, new])
        if tuple(value.shape) != wanted:
            raise ValueError(f"{name} is {tuple(value.shape)}, and should be {wanted}")
        return value

    def _load_buffers(self) -> None:
        """Buffers that are saved are read at once: they are small."""
        for name in self._buffers & set(self._groups):
            module = self._model.get_submodule(name.rpartition(".")[0])
            value = self._made(name, self._groups[name])[name]
            if name in self._model.state_dict():
                module._buffers[name.rpartition(".")[2]] = value
