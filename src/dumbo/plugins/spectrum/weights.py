"""The weights of a model as matrices, wherever they lie, and which of them belong together."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from dumbo.errors import Problem, RunError
from dumbo.merging.numbers import Array

if TYPE_CHECKING:
    from torch.nn import Module

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
Reader = Callable[[int, int], Array]
"""Rows (first dimension) of a tensor from one number to another, in float32; the other dimensions as they come."""


@dataclass(frozen=True)
class Weight:
    """A tensor that can be read piece by piece."""

    name: str
    shape: tuple[int, ...]
    read: Reader
    is_end: bool = False
    """Whether it is of the embeddings or the output head."""

    @property
    def is_matrix(self) -> bool:
        """Whether it has a spectrum; biases of experts have two dimensions, and none."""
        return len(self.shape) > 1 and "bias" not in self.name.rpartition(".")[2]

    @property
    def parts(self) -> int:
        """Its matrices: as many as there are experts in a weight of three dimensions, else one."""
        return self.shape[0] if len(self.shape) == 3 and "conv" not in self.name else 1

    def matrix(self, part: int) -> Array:
        """One of them, with two dimensions; a kernel of a convolution has a row per output, a vector is one row."""
        if self.parts > 1:
            return self.read(part, part + 1).reshape(self.shape[1:])
        if len(self.shape) < 2:
            return self.read(0, self.shape[0] if self.shape else 1).reshape(1, -1)
        return self.read(0, self.shape[0]).reshape(self.shape[0], -1)


@dataclass(frozen=True)
class Unit:
    """A weight that is chosen or not, with what goes with it: the bias of a linear layer."""

    weight: Weight
    names: tuple[str, ...]
    """All that is trained if it is chosen."""

    @property
    def kind(self) -> str:
        """Its name with a star for every number: those of one kind are compared with each other."""
        return _NUMBER.sub("*", self.weight.name).removesuffix(".weight")

    @property
    def place(self) -> str:
        """The numbers in its name, as `3` of layer 3, `3.7` of expert 7 in layer 3."""
        return ".".join(_NUMBER.findall(self.weight.name))


def weights_of_model(model: Module, reader: Callable[[str, Any], Reader] | None = None) -> list[Weight]:
    """All weights of a model; tied ones once. `reader` says how one is read, by its name and its parameter: by default
    from memory.

    Raises:
        RunError: some are quantized.
    """
    ends = {id(weight) for weight in _ends(model)}
    found = []
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            raise quantized(name, str(parameter.dtype).removeprefix("torch."))
        read = reader(name, parameter) if reader is not None else partial(rows_of, parameter.detach())
        found.append(Weight(name, tuple(parameter.shape), read, id(parameter) in ends))
    return found


def rows_of(whole: Any, begin: int, end: int) -> Array:
    """The rows of a tensor from one number to another, in float32."""
    rows: Array = whole.reshape(whole.shape or (1,))[begin:end].float().contiguous().cpu().numpy()
    return rows


def _ends(model: Any) -> Iterable[Any]:
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        try:
            module = getattr(model, getter)()
        except (AttributeError, NotImplementedError):
            continue
        if getattr(module, "weight", None) is not None:
            yield module.weight


def quantized(name: str, how: str) -> RunError:
    """The error of a weight, or model, that is quantized."""
    message = f"spectrum: {name} is quantized ({how}), and the signal in what is left of it is not that of the weight"
    return RunError(str(Problem(message, hints=("take the model that it was made from",))))


def units_of(weights: Sequence[Weight]) -> list[Unit]:
    """What can be chosen: every matrix with its bias, and every vector that is none; not embeddings and head."""
    matrices = {weight.name for weight in weights if weight.is_matrix}
    biases: dict[str, list[str]] = {}
    for weight in weights:
        owner = _owner(weight, matrices)
        if owner is not None:
            biases.setdefault(owner, []).append(weight.name)
    of_others = {name for names in biases.values() for name in names}
    return [
        Unit(weight, (weight.name, *biases.get(weight.name, ())))
        for weight in weights
        if weight.name not in of_others and not weight.is_end
    ]


def _owner(weight: Weight, matrices: set[str]) -> str | None:
    """The matrix whose bias this is: `a.weight` of `a.bias`, `experts.down_proj` of `experts.down_proj_bias`."""
    if weight.is_matrix:
        return None
    module, _, name = weight.name.rpartition(".")
    stem = name.removesuffix("_bias") if name != "bias" else "weight"
    owner = f"{module}.{stem}" if module else stem
    return owner if stem != name and owner in matrices else None
