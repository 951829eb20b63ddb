"""Tokenised rows in flat arrays, and the batches that are padded of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dumbo.data.collate import PaddingCollator
from dumbo.data.dataset import TokenBlock, TokenDataset
from dumbo.data.records import Example, Origin

ORIGIN = Origin("rows.jsonl", 1)


@pytest.fixture
def dataset():
    examples = [
        Example([5, 6, 7], [-100, 6, 7], ORIGIN),
        Example([8], [8], ORIGIN),
        Example([1, 2, 3, 4], [1, 2, -100, 4], ORIGIN),
    ]
    return TokenDataset.from_examples(iter(examples))


def as_lists(dataset):
    rows = [dataset[index] for index in range(len(dataset))]
    return [(row["input_ids"].tolist(), row["labels"].tolist()) for row in rows]


def test_rows_come_back_as_they_were_with_the_first_token_untrained(dataset):
    assert as_lists(dataset) == [
        ([5, 6, 7], [-100, 6, 7]),
        ([8], [-100]),
        ([1, 2, 3, 4], [-100, 2, -100, 4]),
    ]
    assert (len(dataset), dataset.num_tokens, dataset.num_supervised) == (3, 8, 4)


def test_a_token_and_its_label_take_five_bytes(dataset):
    (block,) = dataset.blocks
    assert (block.tokens.nbytes, block.trained.nbytes) == (4 * dataset.num_tokens, dataset.num_tokens)
    row = dataset[0]
    assert row["input_ids"].dtype == row["labels"].dtype == np.int32


def test_rows_are_joined_and_cut_without_copies(dataset):
    twice = TokenDataset.join([dataset, dataset.select([2]).of_source(1)])
    assert as_lists(twice) == [*as_lists(dataset), as_lists(dataset)[2]]
    assert twice.source.tolist() == [0, 0, 0, 1]
    cut = dataset.cut(np.array([1, 0, 1]), np.array([2, 1, 2], np.int32))
    assert as_lists(cut) == [([6, 7], [-100, 7]), ([8], [-100]), ([2, 3], [-100, -100])]
    assert cut.supervised.tolist() == [1, 0, 0] and cut.blocks is dataset.blocks


def test_no_examples_are_an_empty_data_set():
    empty = TokenDataset.from_examples([])
    assert (len(empty), empty.num_tokens, empty.num_supervised) == (0, 0, 0)


def test_rows_are_selected_in_the_order_that_is_given(dataset):
    chosen = dataset.select([2, 0, 2])
    assert as_lists(chosen) == [as_lists(dataset)[index] for index in (2, 0, 2)]
    assert len(dataset.select([])) == 0
    assert as_lists(chosen.select([1])) == [as_lists(dataset)[0]]


def test_the_filler_row_trains_nothing_and_leaves_the_data_alone(dataset):
    before = as_lists(dataset)
    filler = dataset[-1]
    assert filler["labels"].tolist() == [-100, -100]
    assert len(filler["input_ids"]) == 2
    assert as_lists(dataset) == before


def test_a_batch_is_padded_on_the_right_to_its_longest_row(dataset):
    batch = PaddingCollator(pad_token_id=9)([dataset[0], dataset[1], dataset[2]])
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[5, 6, 7, 9], [8, 9, 9, 9], [1, 2, 3, 4]],
        "attention_mask": [[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1]],
        "labels": [[-100, 6, 7, -100], [-100, -100, -100, -100], [-100, 2, -100, 4]],
    }
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_a_batch_does_not_share_memory_with_the_data(dataset):
    before = as_lists(dataset)
    batch = PaddingCollator(pad_token_id=9)([dataset[2]])
    batch["input_ids"].zero_()
    batch["labels"].zero_()
    assert as_lists(dataset) == before


def examples_of(rows):
    return [Example(ids, [-100, *ids[1:]], ORIGIN) for ids in rows]


def test_a_digest_stands_for_tokens_and_labels_wherever_they_lie():
    rows = [[number, number + 1, 3] for number in range(20)]
    whole = TokenDataset.from_examples(examples_of(rows))
    halves = TokenDataset.join([TokenDataset.from_examples(examples_of(half)) for half in (rows[:10], rows[10:])])
    assert whole.digest() == halves.digest() == whole.select(range(20)).digest()
    assert whole.select([1, 0, *range(2, 20)]).digest() != whole.digest(), "the order counts"
    other = [*rows[:7], [7, 9, 3], *rows[8:]]
    assert TokenDataset.from_examples(examples_of(other)).digest() != whole.digest()
    untrained = TokenDataset.from_examples([*examples_of(rows)[:19], Example(rows[19], [-100] * 3, ORIGIN)])
    assert untrained.digest() != whole.digest(), "labels count"
    assert TokenDataset.from_examples([]).digest() != whole.digest()


def test_a_digest_of_many_tokens_reads_some_of_them():
    rows = [[number, number + 1, 3] for number in range(20)]
    whole = TokenDataset.from_examples(examples_of(rows))
    assert whole.digest(30) != whole.digest()
    seen, unseen = [*rows[:8], [8, 0, 3], *rows[9:]], [*rows[:9], [9, 0, 3], *rows[10:]]
    assert TokenDataset.from_examples(examples_of(seen)).digest(30) != whole.digest(30)
    assert TokenDataset.from_examples(examples_of(unseen)).digest(30) == whole.digest(30)
    assert TokenDataset.from_examples(examples_of([*rows[:9], [9, 0, 3, 4], *rows[10:]])).digest(30) != whole.digest(30)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_what_was_read_of_files_does_not_stay_in_memory(tmp_path):
    """Counting what is trained, and the digest, go through all of the files."""
    count, rows = 8_000_000, 1000
    np.zeros(count, np.int32).tofile(tmp_path / "tokens")
    np.ones(count, np.bool_).tofile(tmp_path / "trained")

    def mapped():
        return int(Path("/proc/self/status").read_text().partition("RssFile:")[2].split()[0]) / 1024

    block = TokenBlock(np.memmap(tmp_path / "tokens", np.int32, "r"), np.memmap(tmp_path / "trained", np.bool_, "r"))
    before = mapped()
    int(block.tokens.sum())
    assert mapped() > before + 20
    block.let_go()
    assert mapped() < before + 5
    dataset = TokenDataset.of_blocks([block], [np.full(rows, count // rows, np.int32)])
    assert dataset.num_supervised == count - rows
    digest = dataset.digest()
    assert mapped() < before + 5
    assert dataset.digest() == digest
