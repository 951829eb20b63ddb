"""The matrices that adapters add, from the tensors they are saved as: one function for each of PEFT's methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from dumbo.errors import Problem, RunError
from dumbo.merging.adapters import Adapter
from dumbo.merging.changes import Block
from dumbo.merging.numbers import Array
from dumbo.merging.tensor_files import StoredTensor

Roles = Mapping[str, StoredTensor]
Delta = Callable[[Any], Array | tuple[Array, Array]]


@dataclass(frozen=True)
class Matrix:
    """What is added to one weight in memory, `rows` by `columns`; `load` reads it as numbers of a type: the two factors
    of a product, or, for methods that are none, the whole of it."""

    rows: int
    columns: int
    load: Callable[[Any], tuple[Array, Array] | Array]

    def part(
        self, rows: slice = slice(None), columns: slice = slice(None), *, transposed: bool = False
    ) -> Callable[[Any], Block]:
        """Rows of a part of it, as an addend needs them; `transposed` when the part lies on its side on disk."""

        def load(wide: Any) -> Block:
            made = self.load(wide)
            if isinstance(made, tuple):
                left, right = made[0][rows], made[1][:, columns]
                if transposed:
                    left, right = np.ascontiguousarray(right.T), np.ascontiguousarray(left.T)
                return lambda begin, end: left[begin:end] @ right
            whole = made[rows, columns]
            if transposed:
                whole = whole.T
            return lambda begin, end: whole[begin:end]

        return load


def matrix_of(adapter: Adapter, module: str, roles: Roles) -> Matrix:
    """What the adapter adds to the weight of `module`.

    Raises:
        RunError: a part of it is missing, or its shapes do not fit each other.
    """
    make = ADDED.get(adapter.kind)
    if make is None:
        raise unknown(adapter, module)
    return make(adapter, module, roles)


def _lora(adapter: Adapter, module: str, roles: Roles) -> Matrix:
    """s B A (arXiv 2106.09685); of embeddings, whose matrices are saved transposed, s (B A)^T; of convolutions the same
    with the kernel's numbers as columns."""
    if "lora_embedding_A" in roles or "lora_embedding_B" in roles:
        first, second = _need(adapter, module, roles, "lora_embedding_A", "lora_embedding_B")
        rank, rows, columns = first.shape[0], first.shape[-1], second.shape[0]
        _fit(module, second.shape[-1] == rank, first, second)
        scale = adapter.weight * adapter.scaling(module, rank)
        return Matrix(rows, columns, lambda wide: (first.read(wide).T * wide(scale), second.read(wide).T))
    first, second = _need(adapter, module, roles, "lora_A", "lora_B")
    rank, rows = first.shape[0], second.shape[0]
    _fit(module, second.columns == rank, first, second)  # A grouped convolution has other columns.
    scale = adapter.weight * adapter.scaling(module, rank)
    columns = first.columns
    return Matrix(
        rows,
        columns,
        lambda wide: (second.read(wide).reshape(rows, rank) * wide(scale), first.read(wide).reshape(rank, columns)),
    )


def expert_matrix(adapter: Adapter, name: str, roles: Roles, experts: int, expert: int, *, flipped: bool) -> Matrix:
    """What is added to the matrix of one of `experts` in the weight `name`, as PEFT's `ParamWrapper` lays it out: the
    ranks of all experts below each other in A, and with the experts as the fastest index in B. `flipped` where the
    weight has inputs by outputs."""
    first, second = _need(adapter, name, roles, "lora_A", "lora_B")
    rank, columns, rows = first.shape[0] // experts, first.shape[1], second.shape[0]
    _fit(name, first.shape[0] == second.shape[1] == rank * experts, first, second)
    # PEFT matches the patterns against the name of the weight, not that of its module.
    scale = adapter.weight * adapter.scaling(name, rank)

    def load(wide: Any) -> tuple[Array, Array]:
        right = first.read_rows(expert * rank, (expert + 1) * rank, wide)
        left = second.read(wide).reshape(rows, rank, experts)[:, :, expert] * wide(scale)
        return (right.T, left.T) if flipped else (left, right)

    return Matrix(columns, rows, load) if flipped else Matrix(rows, columns, load)


def _adalora(adapter: Adapter, module: str, roles: Roles) -> Matrix:
    """s B (A * E) / n, with the singular values E and the number n of those that are left (arXiv 2303.10512)."""
    first, values, second = _need(adapter, module, roles, "lora_A", "lora_E", "lora_B")
    left = roles.get("ranknum")
    # Its scale is alpha itself, unlike LoRA's.
    alpha = float(adapter.settings.get("lora_alpha") or 0)
    scale = adapter.weight * (alpha if alpha > 0 else float(adapter.settings.get("init_r") or first.shape[0]))

    def load(wide: Any) -> tuple[Array, Array]:
        # PEFT does not save the number; it is that of the rows when it loads them.
        count = first.shape[0] if left is None else float(left.read(np.float64).reshape(-1)[0])
        share = wide(scale / (count + 1e-5))
        return second.read(wide) * share, first.read(wide) * values.read(wide)

    return Matrix(second.shape[0], first.shape[1], load)


def _loha(adapter: Adapter, module: str, roles: Roles) -> Matrix:
    """s (A1 B1) * (A2 B2), multiplied number by number (arXiv 2108.06098)."""
    if "hada_t1" in roles:
        raise _error(f"{module}: LoHa with effective convolutions cannot be merged here", _PEFT_HINT)
    names = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    one, two, three, four = _need(adapter, module, roles, *names)
    scale = adapter.weight * adapter.scaling(module, one.shape[-1])

    def load(wide: Any) -> Array:
        made: Array = (one.read(wide) @ two.read(wide)) * (three.read(wide) @ four.read(wide)) * wide(scale)
        return made

    return Matrix(one.shape[0], two.shape[-1], load)


def _lokr(adapter: Adapter, module: str, roles: Roles) -> Matrix:
    """s (W1 kron W2), each whole or a product (arXiv 2212.10650)."""
    if "lokr_t2" in roles:
        raise _error(f"{module}: LoKr with effective convolutions cannot be merged here", _PEFT_HINT)
    pairs = [
        [roles[f"lokr_{name}"]] if f"lokr_{name}" in roles
        else list(_need(adapter, module, roles, f"lokr_{name}_a", f"lokr_{name}_b"))
        for name in ("w1", "w2")
    ]  # fmt: skip
    ranks = [pair[0].shape[-1] for pair in pairs if len(pair) == 2]
    scale = adapter.weight * adapter.scaling(module, ranks[0] if ranks else None)

    def load(wide: Any) -> Array:
        one, two = (pair[0].read(wide) if len(pair) == 1 else pair[0].read(wide) @ pair[1].read(wide) for pair in pairs)
        made: Array = np.kron(one, two.reshape(two.shape[0], -1)) * wide(scale)
        return made

    rows = pairs[0][0].shape[0] * pairs[1][0].shape[0]
    columns = pairs[0][-1].shape[-1] * pairs[1][-1].columns
    return Matrix(rows, columns, load)


ADDED: Mapping[str, Callable[[Adapter, str, Roles], Matrix]] = MappingProxyType(
    {"LORA": _lora, "ADALORA": _adalora, "LOHA": _loha, "LOKR": _lokr}
)
"""PEFT's name of a method -> what it adds to a weight."""

MULTIPLIED = ("IA3",)
WHOLE_ONLY = ("LN_TUNING", "TRAINABLE_TOKENS")
"""Methods whose tensors are the model's own, or rows of them."""
KNOWN = frozenset({*ADDED, *MULTIPLIED, *WHOLE_ONLY})

_PROMPTS = {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE"}.__contains__
_PEFT_HINT = "merge it with PEFT itself: PeftModel.from_pretrained(...).merge_and_unload(), with all of it in memory"


def unknown(adapter: Adapter, module: str = "") -> RunError:
    """Why an adapter of another method is not merged."""
    where = f"'{adapter.folder}'{f' ({module})' if module else ''} is an adapter of the method {adapter.kind}"
    if _PROMPTS(adapter.kind):
        message = f"{where}: it is a part of the prompt, not of the weights, and cannot be merged"
        return _error(message, "serve it as it is, with PEFT")
    return _error(f"{where}, which dumbo cannot merge; it can: {', '.join(sorted(KNOWN))}", _PEFT_HINT)


def _need(adapter: Adapter, module: str, roles: Roles, *names: str) -> tuple[StoredTensor, ...]:
    missing = [name for name in names if name not in roles]
    if missing:
        message = f"the adapter in '{adapter.folder}' lacks {missing[0]} of {module}, which has {', '.join(roles)}"
        raise _error(message, "it is damaged, or not of this method")
    return tuple(roles[name] for name in names)


def _fit(module: str, fits: bool, *tensors: StoredTensor) -> None:
    if not fits:
        shapes = ", ".join(f"{tensor.name} {'x'.join(map(str, tensor.shape))}" for tensor in tensors)
        raise _error(f"the matrices of {module} do not fit each other: {shapes}")


def _error(message: str, *hints: str) -> RunError:
    return RunError(str(Problem(message, hints=hints)))
