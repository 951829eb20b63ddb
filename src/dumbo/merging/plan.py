"""Gives every tensor of the adapters its place in the base model, before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dumbo.errors import Problem, RunError
from dumbo.merging.adapters import Adapter
from dumbo.merging.bases import Base
from dumbo.merging.changes import Addend, Change, Factor, Magnitude
from dumbo.merging.deltas import Matrix
from dumbo.merging.numbers import ROUNDOFF
from dumbo.merging.places import Piece, Places
from dumbo.merging.taking import Taking, Weight, misfit
from dumbo.merging.tensor_files import Planned, StoredTensor


@dataclass(frozen=True)
class Plan:
    """What the merged model will be."""

    base: Base
    adapters: Sequence[Adapter]
    changes: Mapping[str, Change]
    """By the names on disk; all other tensors are copied."""
    added: Mapping[str, str]
    """Tensors that the base model's files lack -> the tensor in whose file they go."""
    rows: int | None = None
    """Rows of the vocabulary, where there are others now."""
    unties: bool = False
    dtype: str | None = None
    """The type of all numbers, where another one is asked for."""
    said: Sequence[str] = ()


def plan_merge(
    base: Base,
    adapters: Sequence[Adapter],
    places: Places,
    *,
    dtype: str | None = None,
    tokens: int | None = None,
    simulate: Callable[[str], Callable[[StoredTensor], Any] | None] | None = None,
) -> Plan:
    """What becomes of each tensor. `dtype` is a type by safetensors' name; `tokens`: how many rows the tokenizer needs;
    `simulate`: for the name of a weight in memory, what rounds it to what it was in training.

    Raises:
        RunError: a tensor of an adapter has no place, another shape, or cannot be merged with the others.
    """
    return _Planner(base, adapters, places).plan(dtype, tokens, simulate)


class _Planner:
    def __init__(self, base: Base, adapters: Sequence[Adapter], places: Places) -> None:
        self._base, self._adapters, self._places = base, adapters, places
        self._weights = Taking(base, adapters, places).weights
        self._said: list[str] = []

    def plan(
        self,
        dtype: str | None,
        tokens: int | None,
        simulate: Callable[[str], Callable[[StoredTensor], Any] | None] | None,
    ) -> Plan:
        """Put what was noted onto the tensors on disk."""
        unties = self._settle_ties()
        rows = self._rows(tokens)
        changes: dict[str, Change] = {}
        head = self._places.head
        named = self._named(rows, unties)
        if simulate is not None:  # All of the model was rounded in training, adapted or not.
            named |= {name: Weight() for name in self._places.pieces if name not in named and simulate(name)}
        for name, weight in named.items():
            for piece in self._places.pieces[name]:
                stored = self._base.tensors[piece.tensor]
                target = name if unties and name == head else piece.tensor
                if target not in changes:
                    changes[target] = self._change(name, target, stored, weight, dtype, rows)
                self._add(changes[target], name, weight, piece)
                if simulate is not None and weight.whole is None:
                    changes[target].simulate = simulate(name) or changes[target].simulate
        self._change_twin(changes, unties)
        if dtype is not None:
            for name, stored in self._base.tensors.items():
                if name not in changes and stored.dtype in ROUNDOFF and stored.dtype != dtype:
                    changes[name] = Change(Planned(name, dtype, stored.shape), stored)
        added = {}
        if unties and head is not None and head not in self._base.tensors:
            added[head] = self._places.pieces[head][0].tensor
        return Plan(self._base, self._adapters, changes, added, rows, unties, dtype, self._said)

    def _change_twin(self, changes: dict[str, Change], unties: bool) -> None:
        """Files may hold a tied weight twice: both stay the same."""
        head = self._places.head
        if self._places.is_tied and not unties and head is not None and head in self._base.tensors:
            twin = changes.get(self._places.pieces[head][0].tensor)
            if twin is not None:
                changes[head] = replace(twin, target=replace(twin.target, name=head))

    def _settle_ties(self) -> bool:
        """Whether head and embeddings must be written apart, because they become different ones."""
        places, embeddings, head = self._places, self._places.embeddings, self._places.head
        if not places.is_tied or embeddings is None or head is None:
            return False
        one, other = self._weights.get(embeddings), self._weights.get(head)
        if one is None and other is None:
            return False
        stays = any(adapter.settings.get("ensure_weight_tying") for adapter in self._adapters)
        present = one or other
        together = one is not None and other is not None and one.same(other)
        # PEFT trains one for both, and saves it once: rows of tokens always, others where it was told to.
        alone = one is None or other is None
        if present is not None and (together or (alone and (stays or _only_rows(present)))):
            self._weights.pop(head, None)
            self._weights[embeddings] = present
            return False
        which = "embeddings and head are changed" if one and other else "the embeddings are" if one else "the head is"
        self._said.append(
            f"{which} changed, each for itself, and were one tensor: they are written apart "
            "(tie_word_embeddings: false)"
        )
        return True

    def _rows(self, tokens: int | None) -> int | None:
        """How many rows the vocabulary gets, where that is not what it has."""
        name = self._places.embeddings
        if name is None or self._places.single(name) is None:
            return None
        old = self._base.tensors[str(self._places.single(name))].shape[0]
        needed = max(old, tokens or 0)
        for each in (name, self._places.head):
            weight = self._weights.get(str(each))
            if weight is not None:
                needed = max([needed, *(max(numbers, default=-1) + 1 for numbers, _ in weight.fresh)])
                needed = max(needed, weight.whole.shape[0] if weight.whole is not None else 0)
        if needed == old:
            return None
        self._said.append(
            f"embeddings: {old} -> {needed} rows; those that the adapter does not bring are the mean of the old"
        )
        return needed

    def _named(self, rows: int | None, unties: bool) -> dict[str, Weight]:
        """What is done to each weight; where the vocabulary grows, also to those that no adapter names."""
        named = dict(self._weights)
        if unties:  # What was in one tensor is in two, and one of them may stay what it was.
            named.setdefault(str(self._places.head), Weight())
        if rows is not None:
            places = self._places
            bias = f"{str(places.head).rpartition('.')[0]}.bias"
            for name in (places.embeddings, places.head, bias):
                if name is not None and name in places.pieces:
                    named.setdefault(name, self._weights.get(name) or Weight())
        return named

    def _change(
        self, name: str, target: str, stored: StoredTensor, weight: Weight, dtype: str | None, rows: int | None
    ) -> Change:
        source, shape = weight.whole or stored, stored.shape
        head_bias = f"{str(self._places.head).rpartition('.')[0]}.bias"
        if rows is not None and name in (self._places.embeddings, self._places.head, head_bias):
            shape = (rows, *shape[1:])
        if source.shape != stored.shape and (shape == stored.shape or source.shape[1:] != shape[1:]):
            raise misfit(self._base, weight.by or self._adapters[0], name, source.shape, stored.shape)
        code = dtype or stored.dtype
        if code not in ROUNDOFF or source.dtype not in ROUNDOFF:
            bad = stored.dtype if code not in ROUNDOFF else source.dtype
            raise _error(
                f"{target} of the base model is of the type {bad}, into which nothing can be merged",
                "merge onto a copy in bfloat16, float16 or float32",
            )
        columns = shape[-1] if len(shape) == 3 and any(each[2] is not None for each in weight.matrices) else 0
        return Change(Planned(target, code, shape), source, columns)

    def _add(self, change: Change, name: str, weight: Weight, piece: Piece) -> None:
        """Put what is done to the weight `name` onto the tensor that holds this piece of it."""
        flipped = name in self._places.flipped
        for adapter, matrix, expert in weight.matrices:
            if piece.expert is None or expert is None or piece.expert == expert:
                change.addends.append(self._addend(change, name, (adapter, matrix, expert), piece))
        if weight.magnitude is not None:
            change.magnitude = self._magnitude(change, name, weight, piece, flipped)
        for tensor, share in weight.factors:
            change.factors.append(self._factor(change, name, tensor, share, flipped))
        for adapter, tensor, scale in weight.biases:
            if tensor.shape != change.target.shape:
                raise misfit(self._base, adapter, name, tensor.shape, change.target.shape)
            change.addends.append(_bias(tensor, scale))
        change.fresh += [fresh for fresh in weight.fresh if fresh not in change.fresh]

    def _addend(self, change: Change, name: str, added: tuple[Adapter, Matrix, int | None], piece: Piece) -> Addend:
        adapter, matrix, expert = added
        # That of an expert lies as its weight does; others are outputs by inputs, whatever their weight is.
        turned = name in self._places.flipped and expert is None
        whole = (matrix.columns, matrix.rows) if turned else (matrix.rows, matrix.columns)
        rows, columns = piece.rows or (0, whole[0]), piece.columns or (0, whole[1])
        parts = (slice(*columns), slice(*rows)) if turned else (slice(*rows), slice(*columns))
        load = matrix.part(*parts, transposed=turned != piece.transposed)
        height, width = rows[1] - rows[0], columns[1] - columns[0]
        if piece.transposed:
            height, width = width, height
        row = piece.row
        if expert is not None and piece.expert is None:
            row += expert * change.target.shape[1]
        is_all = piece == Piece(piece.tensor) and expert is None
        needed = (change.old_rows, change.columns) if is_all else (height, width)
        if (height, width) != needed or row + height > change.rows or piece.column + width > change.columns:
            raise misfit(self._base, adapter, name, whole, change.source.shape)
        return Addend(row, piece.column, height, width, load)

    def _magnitude(self, change: Change, name: str, weight: Weight, piece: Piece, flipped: bool) -> Magnitude:
        lengths = weight.magnitude
        assert lengths is not None
        is_embedding = "lora_embedding_A" in weight.matrices[0][0].parts.get(name.removesuffix(".weight"), ())
        by_columns = is_embedding or flipped
        whole = piece == Piece(piece.tensor)
        if not whole and (piece.transposed or piece.columns is not None or by_columns):
            raise _error(f"{name} is DoRA and lies in pieces on disk, whose lengths cannot be told apart")
        count = lengths.rows if len(lengths.shape) < 2 else max(lengths.shape)
        wanted = change.columns if by_columns else change.rows if whole else count
        if count != wanted:
            raise misfit(self._base, self._adapters[0], name, lengths.shape, change.target.shape)
        if whole or by_columns:
            return Magnitude(lengths, by_columns)
        rows = piece.rows or (0, count)
        return Magnitude(lengths, False, piece.row, rows[1] - rows[0], rows[0])

    def _factor(self, change: Change, name: str, tensor: StoredTensor, share: float, flipped: bool) -> Factor:
        """IA3's numbers are (outputs, 1), or (1, inputs) for feedforward layers."""
        if name.endswith(".bias"):
            return Factor(tensor, False, share)
        by_inputs = tensor.shape[0] == 1 and tensor.shape[-1] != 1
        by_columns = by_inputs != flipped
        count = max(tensor.shape)
        if count != (change.columns if by_columns else change.rows):
            raise misfit(self._base, self._adapters[0], name, tensor.shape, change.target.shape)
        return Factor(tensor, by_columns, share)


def _only_rows(weight: Weight) -> bool:
    return bool(weight.fresh) and not (weight.matrices or weight.whole or weight.factors)


def _bias(tensor: StoredTensor, scale: float) -> Addend:
    def load(wide: Any) -> Callable[[int, int], Any]:
        values = tensor.read(wide)[:, None] * wide(scale)
        return lambda begin, end: values[begin:end]

    return Addend(0, 0, tensor.rows, 1, load)


def _error(message: str, *hints: str) -> RunError:
    return RunError(str(Problem(message, hints=hints)))
