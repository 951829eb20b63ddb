"""Columns beside tokens: from an example to a batch, by all ways that rows can take."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dumbo.data.collate import PackedCollator, PaddingCollator
from dumbo.data.columns import Column, Columns, column_fault
from dumbo.data.dataset import TokenDataset
from dumbo.data.encoded import RowWriter, read_rows
from dumbo.data.records import Example, Origin
from dumbo.data.store import Store
from dumbo.errors import DataError, RunError

ORIGIN = Origin("rows.jsonl", 1)


def example(ids, weights=None, rows=None, default=1.0):
    columns = {}
    if weights is not None:
        columns["weights"] = Column(np.array(weights, np.float32), default)
    if rows is not None:
        columns["rows"] = Column(np.array(rows, np.int32))
    return Example(ids, ids, ORIGIN, columns=columns)


EXAMPLES = [
    example([5, 6, 7]),
    example([1, 2, 3, 4], weights=[0.5, 0, 2, 3]),
    example([8, 9], weights=[4, 5], rows=[[1, 2], [3, 4]]),
]


def weights_of(dataset):
    return [dataset[index]["weights"].tolist() for index in range(len(dataset))]


@pytest.fixture
def dataset():
    return TokenDataset.from_examples(EXAMPLES)


def test_rows_have_their_columns_and_the_others_the_default(dataset):
    assert weights_of(dataset) == [[1, 1, 1], [0.5, 0, 2, 3], [4, 5]]
    assert dataset[1]["rows"].tolist() == [[0, 0]] * 4 and dataset[2]["rows"].tolist() == [[1, 2], [3, 4]]
    assert dataset[2]["weights"].dtype == np.float32 and dataset[2]["rows"].dtype == np.int32


def test_rows_are_chosen_cut_and_joined_with_their_columns(dataset):
    assert weights_of(dataset.select([2, 1])) == [[4, 5], [0.5, 0, 2, 3]]
    assert dataset[1, 1, 2]["weights"].tolist() == [0, 2]
    cut = dataset.select([1, 2]).cut(np.array([2, 1]), np.array([2, 1], np.int32))
    assert weights_of(cut) == [[2, 3], [5]] and cut[0, 1, 1]["weights"].tolist() == [3]
    plain = TokenDataset.from_examples([example([3, 3])])
    weighted = TokenDataset.from_examples([example([9], weights=[7])])
    joined = TokenDataset.join([plain, dataset, cut, weighted]).select([6, 5, 4, 3, 2, 1, 0])
    assert weights_of(joined) == [[7], [5], [2, 3], [4, 5], [0.5, 0, 2, 3], [1, 1, 1], [1, 1]]
    assert joined[3]["rows"].tolist() == [[1, 2], [3, 4]] and joined[0]["rows"].tolist() == [[0, 0]]
    assert joined[-1]["weights"].tolist() == [1, 1]


def test_columns_are_put_beside_rows_that_were_chosen_and_cut(dataset):
    chosen = dataset.select([2, 0, 2]).cut(np.array([1, 0, 0]), np.array([1, 3, 2], np.int32))
    values = {"place": np.arange(6)}
    placed = chosen.with_columns(Columns.of_rows({"place": Column(values["place"]).type}, values, chosen.length))
    assert [placed[row]["place"].tolist() for row in range(3)] == [[0], [1, 2, 3], [4, 5]]
    assert placed.select([2, 1])[1, 1, 2]["place"].tolist() == [2, 3] and weights_of(placed)[0] == [5]
    for wrong in (placed.columns[-1], replace(placed.columns[-1], types={}).select(np.array([0]))):
        with pytest.raises(ValueError, match="cannot be put beside"):
            placed.with_columns(wrong)


def test_different_columns_of_one_name_are_refused(dataset):
    with pytest.raises(DataError, match="rows before it a value of float32"):
        TokenDataset.from_examples([*EXAMPLES, example([1], weights=[[1, 2]])])
    other = TokenDataset.from_examples([example([1], weights=[3], default=0.0)])
    with pytest.raises(RunError, match="in the column 'weights'"):
        TokenDataset.join([dataset, other])


def test_the_digest_knows_columns_and_not_where_they_lie(dataset):
    halves = [TokenDataset.from_examples(EXAMPLES), TokenDataset.from_examples(EXAMPLES).select([2, 1])]
    joined = TokenDataset.join(halves).select([0, 4, 2])
    assert joined.digest() == dataset.digest() != dataset.select([0, 2, 1]).digest()
    other = TokenDataset.from_examples([*EXAMPLES[:2], example([8, 9], weights=[4, 6], rows=[[1, 2], [3, 4]])])
    assert other.digest() != dataset.digest()


def test_a_padded_batch_has_the_default_behind_the_rows(dataset):
    batch = PaddingCollator(0, dataset.column_types)([dataset[1], dataset[2], dataset[-1]])
    assert batch["weights"].tolist() == [[0.5, 0, 2, 3], [4, 5, 1, 1], [1, 1, 1, 1]]
    assert batch["rows"].shape == (3, 4, 2) and batch["rows"].dtype == torch.int32


def test_a_packed_batch_has_them_one_after_the_other(dataset):
    batch = PackedCollator()([dataset[2], dataset[1, 1, 2]])
    assert batch["weights"].tolist() == [[4, 5, 0, 2]]
    assert batch["rows"].tolist() == [[[1, 2], [3, 4], [0, 0], [0, 0]]]


def test_what_is_written_comes_back_from_its_files(tmp_path, dataset):
    writer = RowWriter(tmp_path)
    writer.add(EXAMPLES[0])
    writer.flush({})
    resumed = RowWriter.resumed(tmp_path)
    for row in EXAMPLES[1:]:
        resumed.add(row)
    written = resumed.finish({}).dataset
    in_memory = RowWriter()
    for row in EXAMPLES:
        in_memory.add(row)
    assert weights_of(written) == weights_of(dataset)
    assert written.digest() == in_memory.finish({}).dataset.digest()
    again = RowWriter.resumed(tmp_path)
    again.add(EXAMPLES[1])
    assert weights_of(again.finish({}).dataset) == [*weights_of(dataset), [0.5, 0, 2, 3]]
    with pytest.raises(DataError, match="rows before it"):
        RowWriter.resumed(tmp_path).add(example([1], weights=[[1, 2]]))
    (tmp_path / "00001.column-weights").write_bytes(b"1234")
    with pytest.raises(ValueError, match="reshape"):
        read_rows(tmp_path)


def test_a_folder_of_prepared_data_has_them(tmp_path, dataset):
    writer = RowWriter()
    for row in EXAMPLES:
        writer.add(row)
    encoded = writer.finish({})
    rows = Store(tmp_path).copy("0" * 32, encoded, "rows.jsonl")
    assert weights_of(rows.dataset) == weights_of(dataset) and rows.dataset.digest() == encoded.dataset.digest()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"weights": Column(np.ones(1))}, "2 tokens and a column 'weights' of the shape [1]"),
        ({"labels": Column(np.ones(2))}, "cannot have this name"),
        ({"weights": [1, 2]}, "no Column of an array of numbers"),
        ({"weights": Column(np.array(["a", "b"]))}, "no Column of an array of numbers"),
    ],
)
def test_columns_that_fit_no_row_are_told(columns, message):
    assert message in column_fault(Example([1, 2], [1, 2], ORIGIN, columns=columns))
