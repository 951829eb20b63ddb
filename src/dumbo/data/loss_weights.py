"""How much rows and sources count in the loss: weights beside their tokens."""

from __future__ import annotations

import math
from array import array
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dumbo.data.columns import Column, Columns, ColumnType
from dumbo.data.records import IGNORED, WEIGHTS, DataFormat, Example, Record, Row
from dumbo.data.row_values import kind_of, read_column

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from dumbo.data.dataset import TokenDataset

_TYPE = ColumnType("<f4", (), 1.0)
"""Rows without weights count as they are."""
_MOST = 1e6
"""Of a weight: one such row would be all that a step learns from."""


def weighing(to_record: DataFormat, name: str) -> DataFormat:
    """`to_record`, whose records have the weights of the column `name`; it raises a DataError for one that is none."""

    def convert(row: Row) -> Record:
        return replace(to_record(row), weight=_read(row, name))

    return convert


def _read(row: Row, name: str) -> float:
    value: Any = read_column(row, name)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not 0 <= value <= _MOST:
        hint = f"a row's weight in the loss is a number from 0 to {_MOST:,.0f}: 1 counts as usual, 0 is not trained"
        raise row.origin.error(f"'{name}' is {kind_of(value)}", hint)
    return float(value)


def weigh_example(example: Example, weight: float) -> Example:
    """The example, each of whose tokens counts `weight` times as much; with 0 none is trained."""
    import numpy as np

    if weight == 1:
        return example
    if not weight:
        return replace(example, labels=array("i", [IGNORED]) * len(example.labels))
    own = example.columns.get(WEIGHTS)
    values = np.full(len(example.input_ids), weight, np.float32)
    column = Column(values if own is None else values * own.values, _TYPE.default)
    return replace(example, columns={**example.columns, WEIGHTS: column})


def weigh_source(dataset: TokenDataset, weight: float) -> TokenDataset:
    """The rows of one source, each of whose tokens counts `weight` times as much."""
    import numpy as np

    factor = np.float32(weight)
    if weight == 1 or not len(dataset):
        return dataset
    if WEIGHTS not in dataset.column_types:
        same = np.broadcast_to(factor, (dataset.longest,))  # takes no memory, however long it is
        nowhere = np.zeros(len(dataset), np.int64)
        beside = Columns({WEIGHTS: _TYPE}, ({WEIGHTS: same},), nowhere.astype(np.int32), nowhere)
        return replace(dataset, columns=(*dataset.columns, beside))
    return replace(dataset, columns=tuple(_scaled(columns, dataset, factor) for columns in dataset.columns))


def _scaled(columns: Columns, dataset: TokenDataset, factor: Any) -> Columns:
    """With all weights times `factor`; a block in which no row has one gets it, too."""
    import numpy as np

    if WEIGHTS not in columns.types:
        return columns
    blocks: list[dict[str, NDArray[Any]]] = []
    for block, tokens in zip(columns.blocks, dataset.blocks, strict=True):
        same = np.broadcast_to(factor, (len(tokens.tokens),))
        blocks.append({**block, WEIGHTS: block[WEIGHTS] * factor if WEIGHTS in block else same})
    return replace(columns, blocks=tuple(blocks))
