"""Asks Transformers where the weights that a model has in memory lie on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)
from transformers.pytorch_utils import Conv1D


@dataclass
class Group:
    """Tensors on disk that become weights in memory together."""

    converter: WeightConverter | None = None
    """None where there is one tensor, which only has another name at most."""
    sources: list[tuple[str, str]] = field(default_factory=list)
    """Names on disk, each with the pattern of the converter that it was found by."""

    def filled(self, name: str, value: Callable[[str], Any]) -> WeightConverter:
        """A converter that holds `value` of each source, for the weight `name`."""
        converter = deepcopy(self.converter)
        assert converter is not None
        for source, pattern in self.sources:
            converter.add_tensor(name, source, pattern, value(source))
        return converter


def groups_of(model: PreTrainedModel, on_disk: Sequence[str]) -> dict[str, Group]:
    """First name in memory -> the tensors on disk that it comes from, as `from_pretrained` finds them."""
    transforms = get_model_conversion_mapping(model)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    prefix, state = model.base_model_prefix, dict(model.state_dict())
    groups: dict[str, Group] = {}
    for name in sorted(on_disk, key=dot_natural_key):
        renamed, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if renamed not in state and name in state:
            renamed, pattern = rename_source_key(name, [], [], base_model_prefix=prefix, meta_state_dict=state)
        group = groups.setdefault(renamed, Group(by_pattern[pattern] if pattern is not None else None))
        group.sources.append((name, pattern or ""))
    return groups


@dataclass(frozen=True)
class _Part:
    """A part of a matrix in memory, and the tensor on disk that holds it."""

    tensor: str
    rows: tuple[int, int]
    columns: tuple[int, int]
    expert: int | None = None
    row: int = 0
    column: int = 0
    transposed: bool = False


@dataclass(frozen=True)
class _Symbol:
    """What a tensor would be: its shape, and which parts it consists of."""

    shape: tuple[int, ...]
    parts: tuple[_Part, ...]


def locate(
    model: PreTrainedModel, shapes: Mapping[str, Sequence[int]]
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """The parts of every weight of `model`, whose tensors on disk have `shapes`; and why others cannot be told.

    Returns:
        Name in memory -> the fields of `dumbo.merging.places.Piece`, and name -> reason.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    reasons: dict[str, str] = {}
    for name, group in groups_of(model, list(shapes)).items():
        if group.converter is None:
            found[name] = [{"tensor": group.sources[0][0]}]
            continue
        try:
            for each, symbol in _symbols(name, group, shapes):
                found[each] = [_fields(part, symbol) for part in symbol.parts]
        except ValueError as error:
            reasons[name] = str(error)
    for target, source in tied_weights(model).items():
        if target not in found and source in found:
            found[target] = found[source]
    return found, reasons


def tied_weights(model: PreTrainedModel) -> dict[str, str]:
    """The weights that are another one's, with its name."""
    return {str(target): str(source) for target, source in (model.all_tied_weights_keys or {}).items()}


def flipped_weights(model: PreTrainedModel) -> list[str]:
    """Weights with inputs by outputs."""
    found = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, Conv1D)]
    for name, module in model.named_modules():
        if getattr(module, "is_transposed", False):
            found += [f"{name}.{own}" for own, value in module.named_parameters(recurse=False) if value.ndim == 3]
    return found


def own_parameters(model: PreTrainedModel) -> dict[str, list[str]]:
    """Module -> the names of the weights that it holds itself under other names than `weight` and `bias`."""
    found: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        own = [each for each, _ in module.named_parameters(recurse=False)]
        if set(own) - {"weight", "bias"}:
            found[name] = own
    return found


def _symbols(name: str, group: Group, shapes: Mapping[str, Sequence[int]]) -> Iterator[tuple[str, _Symbol]]:
    """The weights in memory that the group's converter makes. ValueError for a step that is not known here."""
    converter = group.converter
    assert converter is not None
    collected: dict[str, Any] = {}
    for source, pattern in group.sources:
        collected.setdefault(pattern, []).append(_whole(source, tuple(shapes[source])))
    for operation in converter.operations:
        collected = _apply(operation, collected, converter)
    full = name.replace("*.", "0.")
    prefix, suffix = "", ""
    for key in collected:
        if key in full:
            prefix, _, suffix = full.partition(key)
            break
    for key, value in collected.items():
        yield prefix + key + suffix, value[0] if isinstance(value, list) else value


def _whole(tensor: str, shape: tuple[int, ...]) -> _Symbol:
    if len(shape) not in (2, 3):
        raise ValueError(f"{tensor} has {len(shape)} dimensions")
    return _Symbol(shape, (_Part(tensor, (0, shape[-2]), (0, shape[-1])),))


def _apply(operation: Any, collected: dict[str, Any], converter: WeightConverter) -> dict[str, Any]:
    """One step of a converter, on symbols."""
    targets = converter.target_patterns
    if isinstance(operation, MergeModulelist):
        target = targets[0] if len(collected) == 1 else None
        return {target or pattern: _stacked(value, operation) for pattern, value in collected.items()}
    if isinstance(operation, Concatenate) and len(targets) == 1:
        values: list[_Symbol] = []
        for pattern in converter.source_patterns:
            value = collected.get(pattern, [])
            values += value if isinstance(value, list) else [value]
        return {targets[0]: _joined(values, operation.dim)}
    if isinstance(operation, Transpose) and len(collected) == 1:
        value = next(iter(collected.values()))
        return {targets[0]: _turned(value[0] if isinstance(value, list) else value, operation)}
    if isinstance(operation, Chunk) and operation.num_shards_attribute is None and len(collected) == 1:
        value = next(iter(collected.values()))
        symbol = value[0] if isinstance(value, list) else value
        return dict(zip(targets, _cut(symbol, operation.dim, len(targets)), strict=True))
    raise ValueError(f"Transformers makes it by {type(operation).__name__}, which the merge cannot undo")


def _stacked(values: list[_Symbol], operation: Any) -> _Symbol:
    first = values[0]
    if operation.dim != 0 or len(first.shape) != 2:
        raise ValueError("its experts are not stacked along the first dimension")
    parts = [
        _Part(part.tensor, part.rows, part.columns, index, part.row, part.column, part.transposed)
        for index, value in enumerate(values)
        for part in value.parts
    ]
    return _Symbol((len(values), *first.shape), tuple(parts))


def _joined(values: list[_Symbol], dim: int) -> _Symbol:
    count = len(values[0].shape)
    axis = dim % count - count  # -2: rows, -1: columns
    if axis not in (-2, -1):
        raise ValueError("its parts are joined along experts")
    at, parts = 0, []
    for value in values:
        for part in value.parts:
            rows, columns = part.rows, part.columns
            if axis == -2:
                rows = (rows[0] + at, rows[1] + at)
            else:
                columns = (columns[0] + at, columns[1] + at)
            parts.append(_Part(part.tensor, rows, columns, part.expert, part.row, part.column, part.transposed))
        at += value.shape[axis]
    shape = list(values[0].shape)
    shape[axis] = at
    return _Symbol(tuple(shape), tuple(parts))


def _turned(value: _Symbol, operation: Any) -> _Symbol:
    count = len(value.shape)
    if {operation.dim0 % count - count, operation.dim1 % count - count} != {-2, -1}:
        raise ValueError("its dimensions are exchanged with the experts")
    parts = [
        _Part(part.tensor, part.columns, part.rows, part.expert, part.row, part.column, not part.transposed)
        for part in value.parts
    ]
    return _Symbol((*value.shape[:-2], value.shape[-1], value.shape[-2]), tuple(parts))


def _cut(value: _Symbol, dim: int, pieces: int) -> Iterator[_Symbol]:
    count, part = len(value.shape), value.parts[0]
    axis = dim % count - count
    size = value.shape[axis]
    if axis not in (-2, -1) or len(value.parts) > 1 or size % pieces or part.transposed:
        raise ValueError("it is cut in a way that the merge cannot undo")
    each = size // pieces
    shape = list(value.shape)
    shape[axis] = each
    for index in range(pieces):
        row, column = (index * each, 0) if axis == -2 else (0, index * each)
        yield _Symbol(tuple(shape), (_Part(part.tensor, (0, shape[-2]), (0, shape[-1]), None, row, column),))


def _fields(part: _Part, symbol: _Symbol) -> dict[str, Any]:
    """The part as plain values; what is whole is left out."""
    fields: dict[str, Any] = {"tensor": part.tensor}
    if part.rows != (0, symbol.shape[-2]) or part.row:
        fields["rows"] = part.rows
    if part.columns != (0, symbol.shape[-1]) or part.column:
        fields["columns"] = part.columns
    for name in ("expert", "row", "column", "transposed"):
        value = getattr(part, name)
        if value:
            fields[name] = value
    if part.expert == 0:
        fields["expert"] = 0
    return fields
