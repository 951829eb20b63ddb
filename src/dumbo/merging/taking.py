"""Notes what adapters do to each weight that the model has in memory; a tensor without a place is an error."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from dumbo.errors import Problem, RunError
from dumbo.merging.adapters import Adapter
from dumbo.merging.bases import Base
from dumbo.merging.deltas import KNOWN, MULTIPLIED, Matrix, expert_matrix, matrix_of, unknown
from dumbo.merging.places import Places
from dumbo.merging.tensor_files import StoredTensor


@dataclass
class Weight:
    """What the adapters do to one weight in memory."""

    whole: StoredTensor | None = None
    by: Adapter | None = None
    matrices: list[tuple[Adapter, Matrix, int | None]] = field(default_factory=list)
    """With the expert whose matrix it is added to."""
    magnitude: StoredTensor | None = None
    factors: list[tuple[StoredTensor, float]] = field(default_factory=list)
    biases: list[tuple[Adapter, StoredTensor, float]] = field(default_factory=list)
    fresh: list[tuple[tuple[int, ...], StoredTensor]] = field(default_factory=list)

    def same(self, other: Weight) -> bool:
        """Whether both get the same, by what they are made of."""
        mine = [self.whole, self.magnitude, *(tensor for _, tensor in self.fresh)]
        its = [other.whole, other.magnitude, *(tensor for _, tensor in other.fresh)]
        if self.factors or other.factors or len(mine) != len(its) or not _same_sums(self, other):
            return False
        return all(
            one is two or (one is not None and two is not None and one.same_bytes(two))
            for one, two in zip(mine, its, strict=True)
        )


def _same_sums(one: Weight, other: Weight) -> bool:
    """Whether the products are made of the same numbers, though they are saved in other forms."""
    import numpy as np

    if len(one.matrices) != len(other.matrices):
        return False
    for (_, mine, _), (_, its, _) in zip(one.matrices, other.matrices, strict=True):
        pairs = zip(mine.load(np.float64), its.load(np.float64), strict=True)
        if (mine.rows, mine.columns) != (its.rows, its.columns) or not all(np.array_equal(*pair) for pair in pairs):
            return False
    return True


class Taking:
    """What all adapters do, weight by weight."""

    def __init__(self, base: Base, adapters: Sequence[Adapter], places: Places) -> None:
        self._base, self._places = base, places
        self.weights: dict[str, Weight] = {}
        for adapter in adapters:
            self._take(adapter)

    def _take(self, adapter: Adapter) -> None:
        if adapter.kind not in KNOWN:
            raise unknown(adapter)
        stacked: dict[str, list[str]] = {}
        for module, roles in adapter.parts.items():
            name = f"{module}.weight"
            if name in self._places.pieces:
                self._take_roles(adapter, module, name, roles)
            elif _outermost(module) in self._places.parameters:
                stacked.setdefault(_outermost(module), []).append(module)
            else:
                raise lost(self._base, self._places, adapter, name, next(iter(roles.values())))
        for outer, modules in stacked.items():
            self._take_experts(adapter, outer, modules)
        for name, tensor in adapter.whole.items():
            self._take_whole(adapter, name, tensor)

    def _weight(self, name: str) -> Weight:
        return self.weights.setdefault(name, Weight())

    def _take_roles(self, adapter: Adapter, module: str, name: str, roles: Mapping[str, StoredTensor]) -> None:
        weight = self._weight(name)
        if "trainable_tokens_delta" in roles:
            self._take_rows(adapter, module, weight, roles["trainable_tokens_delta"])
            if len(roles) > 1:
                raise _error(f"{module} has both trained rows and a matrix in '{adapter.folder}'; one can be merged")
            return
        if adapter.kind in MULTIPLIED:
            self._take_factor(adapter, module, weight, roles)
            return
        matrix = matrix_of(adapter, module, roles)
        if adapter.settings.get("use_dora") and "lora_magnitude_vector" not in roles:
            message = f"the adapter in '{adapter.folder}' is DoRA and has no magnitude of {module}"
            raise _error(message, "without it the weight cannot be known; train again, or find the whole adapter")
        weight.matrices.append((adapter, matrix, None))
        if "lora_magnitude_vector" in roles:
            weight.magnitude = roles["lora_magnitude_vector"]
        if weight.magnitude is not None and len(weight.matrices) > 1:
            folders = " and ".join(f"'{each.folder}'" for each, _, _ in weight.matrices)
            message = f"{module} is changed by {folders}, one of them DoRA: its length belongs to its own sum"
            raise _error(message, "merge the DoRA adapter alone")
        if weight.magnitude is not None and adapter.weight != 1:
            raise _error(f"'{adapter.folder}' is DoRA, which has no weight: it replaces the length of {module}")
        if "lora_B.bias" in roles:
            bias = f"{module}.bias"
            if bias not in self._places.pieces:
                message = f"'{adapter.folder}' adds a bias to {module}, and the model has none there"
                raise _error(message, "it was trained with lora_bias; serve it with PEFT")
            scale = adapter.weight * adapter.scaling(module, roles["lora_A"].shape[0])
            self._weight(bias).biases.append((adapter, roles["lora_B.bias"], scale))

    def _take_rows(self, adapter: Adapter, module: str, weight: Weight, tensor: StoredTensor) -> None:
        asked = adapter.settings.get("trainable_token_indices") or adapter.settings.get("token_indices")
        if isinstance(asked, Mapping):
            ends = [key for key in asked if module == key or module.endswith(f".{key}")]
            asked = asked[ends[0]] if ends else None
        if not isinstance(asked, list) or len(asked) != tensor.shape[0]:
            message = f"'{adapter.folder}' has {tensor.shape[0]} trained rows of {module}, and does not say which"
            raise _error(message, "trainable_token_indices in adapter_config.json lists them")
        if adapter.weight != 1:
            raise _error(f"'{adapter.folder}' brings rows of {module}, which replace others: they have no weight")
        taken = {number for numbers, _ in weight.fresh for number in numbers}
        if taken & set(asked):
            raise _error(f"two adapters bring the row {min(taken & set(asked))} of {module}")
        weight.fresh.append((tuple(int(number) for number in asked), tensor))

    def _take_factor(self, adapter: Adapter, module: str, weight: Weight, roles: Mapping[str, StoredTensor]) -> None:
        if "ia3_l" not in roles:
            raise lost(self._base, self._places, adapter, module, next(iter(roles.values())))
        if weight.factors:
            raise _error(f"{module} is multiplied by two IA3 adapters; merge one after the other")
        weight.factors.append((roles["ia3_l"], adapter.weight))
        bias = f"{module}.bias"
        if roles["ia3_l"].shape[-1] == 1 and bias in self._places.pieces:  # It multiplies what comes out.
            self._weight(bias).factors.append((roles["ia3_l"], adapter.weight))

    def _take_experts(self, adapter: Adapter, outer: str, modules: Sequence[str]) -> None:
        """Weights that are a module's own parameter. PEFT wraps the module once for each: the first that is registered
        is the innermost."""
        wanted = [str(target) for target in adapter.settings.get("target_parameters") or []]
        own = [
            name
            for name in self._places.parameters[outer]
            if any(f"{outer}.{name}" == target or f"{outer}.{name}".endswith(f".{target}") for target in wanted)
        ]
        inner_first = sorted(modules, key=lambda module: -module.count(".base_layer"))
        if len(own) != len(modules):
            found = f"{len(modules)} pairs of matrices for {outer}"
            raise _error(
                f"'{adapter.folder}' has {found}, and its target_parameters name {len(own)} of its weights: {own}"
            )
        for name, module in zip(own, inner_first, strict=True):
            full, roles = f"{outer}.{name}", adapter.parts[module]
            shape = self._places.shapes[full]
            flipped, weight = full in self._places.flipped, self._weight(full)
            if len(shape) == 2:
                weight.matrices.append((adapter, matrix_of(adapter, full, roles), None))
                continue
            for expert in range(shape[0]):
                matrix = expert_matrix(adapter, full, roles, shape[0], expert, flipped=flipped)
                if (matrix.rows, matrix.columns) != shape[1:]:
                    raise misfit(self._base, adapter, full, (shape[0], matrix.rows, matrix.columns), shape)
                weight.matrices.append((adapter, matrix, expert))

    def _take_whole(self, adapter: Adapter, name: str, tensor: StoredTensor) -> None:
        if self._places.single(name) is None:
            raise lost(self._base, self._places, adapter, name, tensor)
        weight = self._weight(name)
        if weight.whole is not None and weight.by is not None and not weight.whole.same_bytes(tensor):
            message = f"'{weight.by.folder}' and '{adapter.folder}' both bring {name} as a whole, and not the same"
            raise _error(message, "whole weights cannot be added up; merge one of the adapters")
        if adapter.weight != 1:
            message = f"'{adapter.folder}' brings {name} as a whole, which has no weight (it is {adapter.weight:g})"
            raise _error(message, "leave the weight of this adapter out")
        weight.whole, weight.by = tensor, adapter


def _outermost(module: str) -> str:
    while module.endswith(".base_layer"):
        module = module.removesuffix(".base_layer")
    return module


def lost(base: Base, places: Places, adapter: Adapter, name: str, tensor: StoredTensor) -> RunError:
    """A tensor of an adapter that the base model has no place for."""
    near = difflib.get_close_matches(name, list(places.pieces), n=1, cutoff=0.6)
    hints = [f"the nearest that it has is {near[0]}"] if near else []
    hints.append(f"was it trained on another model than '{base.folder}'? --base FOLDER names the right one")
    return _error(f"the adapter's {tensor.name} has no place: the base model has no {name}", *hints)


def misfit(base: Base, adapter: Adapter, name: str, has: Sequence[int], needs: Sequence[int]) -> RunError:
    """A weight that has another shape than the base model's."""
    shapes = f"{'x'.join(map(str, has))}, and the base model's is {'x'.join(map(str, needs))}"
    hint = f"was it trained on another model than '{base.folder}'? --base FOLDER names the right one"
    return _error(f"the adapter in '{adapter.folder}' does not fit: its {name} is {shapes}", hint)


def _error(message: str, *hints: str) -> RunError:
    return RunError(str(Problem(message, hints=hints)))
