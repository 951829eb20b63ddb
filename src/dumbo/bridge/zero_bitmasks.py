"""Weights without their zeros: as values and a bit for each place, in the format `sparse-bitmask`, and back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from dumbo.errors import Problem, RunError
from dumbo.left_out_zeros import OFFSETS, PARTS, PLACES, SHAPE, VALUES, layers_of
from dumbo.merging.bases import stored_tensors
from dumbo.merging.tensor_files import StoredTensor

INSTALL = "pip install 'dumbo-trainer[llm_compressor]'"
_DESCRIBED = 400
"""Bytes that three more tensors take, about, in the header of a file and in the index."""
_WEIGHT = ".weight"
_AS_NUMBERS = MappingProxyType({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64})
"""Bytes of a value -> integers of as many."""


def is_smaller(weight: Tensor) -> bool:
    """Whether `weight` takes less room without its zeros; never for one that is no matrix of real numbers."""
    if weight.ndim != 2 or not weight.is_floating_point():
        return False
    rows, columns = weight.shape
    zeros = weight.numel() - int(_present(weight).count_nonzero())
    return rows * (-(-columns // 8) + 8) + 2 * 8 + _DESCRIBED < zeros * weight.element_size()


def packed(weight: Tensor) -> dict[str, Tensor]:
    """The parts of `weight`, [rows, columns]: its shape, [2]; its values, row after row, [values]; a bit for each
    place, [rows, columns / 8 rounded up], uint8, the lowest bit first; where each row's values begin, [rows].

    A value is what has a bit set: the zero with a minus is one, so that every bit comes back.
    """
    pack, _ = _library()
    present = _present(weight).cpu()
    counts = present.sum(dim=-1)
    values = _numbers(weight).cpu()[present].view(weight.dtype)
    begins = counts.cumsum(0) - counts
    return {SHAPE: torch.tensor(weight.shape), VALUES: values, PLACES: pack(present), OFFSETS: begins}


def unpacked(parts: Mapping[str, Tensor], damaged: Callable[[str], Exception]) -> Tensor:
    """The weight of which `packed` made `parts`, bit by bit.

    `damaged` makes what is raised of what is wrong with them.
    """
    _, unpack = _library()
    shape, values, places = parts[SHAPE], parts[VALUES], parts[PLACES]
    if shape.numel() != 2 or shape.is_floating_point() or values.ndim != 1 or values.element_size() not in _AS_NUMBERS:
        raise damaged("its parts are not those of a matrix")
    rows, columns = map(int, shape.flatten())
    wanted = (rows, -(-columns // 8))
    if columns < 1 or tuple(places.shape) != wanted or places.dtype != torch.uint8:
        said = (
            f"its bits are {'x'.join(map(str, places.shape))}, and {rows}x{columns} values have {wanted[0]}x{wanted[1]}"
        )
        raise damaged(f"{said} bytes of them")
    present = unpack(places, [rows, columns])
    counts = present.sum(dim=-1)
    if int(counts.sum()) != values.numel():
        raise damaged(f"its bits are those of {int(counts.sum()):,} values, and it has {values.numel():,}")
    if not torch.equal(parts[OFFSETS].flatten().long(), counts.cumsum(0) - counts):
        raise damaged("its rows begin elsewhere than its bits say")
    whole = torch.zeros(rows, columns, dtype=_AS_NUMBERS[values.element_size()])
    whole[present] = _numbers(values)
    return whole.view(values.dtype)


@dataclass(frozen=True)
class Found:
    """A tensor of a model as it is without the format, and the file that holds its values."""

    name: str
    file: str
    value: Tensor


@dataclass(frozen=True)
class WholeTensors:
    """The tensors of a model as they are without the format, each of which is read when it is asked for."""

    files: Mapping[str, str]
    """Name -> the file that holds its values, file by file."""
    folder: Path
    stored: Mapping[str, StoredTensor]
    handles: Mapping[Path, Any]

    def read(self, name: str) -> Tensor:
        """The tensor, put together from its parts if there are such. Raises RunError for parts that do not fit."""
        if name in self.stored:
            return _read(self.stored[name], self.handles)
        layer = name.removesuffix(_WEIGHT)
        parts = {part: _read(self.stored[f"{layer}.{part}"], self.handles) for part in PARTS}
        return unpacked(parts, lambda why: _damaged(self.folder, layer, why))


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[WholeTensors]:
    """The model in `folder`, whose files stay open meanwhile.

    Raises:
        RunError: a file or a part is missing or damaged, or the package is not installed.
    """
    stored, _ = stored_tensors(folder)
    layers = layers_of(stored)
    for layer, parts in layers.items():
        missing = [f"{layer}.{part}" for part in PARTS if part not in parts]
        if missing or f"{layer}{_WEIGHT}" in stored:
            why = f"'{missing[0]}' is missing" if missing else f"'{layer}{_WEIGHT}' is there twice, with its zeros too"
            raise _damaged(folder, layer, why)
    files: dict[str, str] = {}
    for name, tensor in stored.items():
        layer, _, part = name.rpartition(".")
        if layer not in layers or part not in PARTS:
            files[name] = tensor.file.name
        elif part == VALUES:
            files[f"{layer}{_WEIGHT}"] = tensor.file.name
    with contextlib.ExitStack() as stack:
        paths = {tensor.file for tensor in stored.values()}
        handles = {path: stack.enter_context(safe_open(path, framework="pt")) for path in paths}
        yield WholeTensors(files, folder, stored, handles)


def whole_tensors(folder: Path) -> Iterator[Found]:
    """Every tensor of the model in `folder`, file by file, weights put together from their parts.

    Raises:
        RunError: as `opened` and `WholeTensors.read` do.
    """
    with opened(folder) as tensors:
        for name, file in tensors.files.items():
            yield Found(name, file, tensors.read(name))


def _read(tensor: StoredTensor, handles: Mapping[Path, Any]) -> Tensor:
    read: Tensor = handles[tensor.file].get_tensor(tensor.name)
    return read


def _numbers(weight: Tensor) -> Tensor:
    return weight.detach().contiguous().view(_AS_NUMBERS[weight.element_size()])


def _present(weight: Tensor) -> Tensor:
    """Where there is more than a zero: bool, in the shape of `weight`."""
    return _numbers(weight) != 0


def _library() -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor, list[int]], Tensor]]:
    """What packs bits and what unpacks them."""
    if find_spec("compressed_tensors") is None:
        message = "weights without their zeros need the package 'compressed-tensors', which is not installed"
        raise RunError(str(Problem(message, hints=(INSTALL,))))
    from compressed_tensors.utils import pack_bitmasks, unpack_bitmasks

    return pack_bitmasks, unpack_bitmasks


def _damaged(folder: Path, layer: str, why: str) -> RunError:
    message = f"the weight '{layer}.weight' in '{folder}' is damaged: {why}"
    return RunError(str(Problem(message, hints=("copy or download the model again",))))
