"""Joined rows: sequences without a gap, no token left out or repeated, and a number of them that is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dumbo.data.dataset import TokenDataset
from dumbo.data.mixing import Mixture, Share, mix
from dumbo.data.plan import FILLER, BatchPlan
from dumbo.data.records import IGNORED, Example, Origin
from dumbo.data.sequences import JoinedRows


def dataset_of(lengths, source=0):
    """Rows whose tokens are all different; every third one is not trained."""
    examples, token = [], 0
    for length in lengths:
        ids = list(range(token, token + length))
        labels = [IGNORED if number % 3 == 1 else number for number in ids]
        examples.append(Example(ids, labels, Origin("rows", len(examples) + 1)))
        token += length
    return TokenDataset.from_examples(examples, source)


def joined(lengths, capacity, shuffle=True, weight=1.0, num_epochs=4, seed=3):
    dataset = dataset_of(lengths)
    mixture = mix(dataset, [weight], "passes", seed, shuffle)
    return dataset, JoinedRows(dataset.length, mixture, capacity, num_epochs, seed, shuffle)


def tokens_of(dataset, pieces):
    return [token for piece in pieces for token in dataset[piece]["input_ids"].tolist()]


LENGTHS = st.lists(st.integers(1, 30), min_size=1, max_size=25)


@settings(max_examples=80)
@given(LENGTHS, st.integers(2, 40), st.booleans(), st.integers(0, 3))
def test_every_token_comes_once_and_sequences_are_full(lengths, capacity, shuffle, epoch):
    dataset, rows = joined(lengths, capacity, shuffle)
    sequences = rows.of_epoch(epoch)
    made = [tokens_of(dataset, sequences.rows_of(number)) for number in range(len(rows))]
    assert sorted(token for tokens in made for token in tokens) == list(range(sum(lengths)))
    assert [len(tokens) for tokens in made] == sequences.lengths.tolist()
    assert [len(tokens) for tokens in made[:-1]] == [capacity] * (len(rows) - 1) and len(rows) == -(
        -sum(lengths) // capacity
    )
    if not shuffle:
        assert [token for tokens in made for token in tokens] == list(range(sum(lengths)))


@settings(max_examples=60)
@given(LENGTHS, st.integers(2, 40))
def test_labels_are_the_rows_own_but_for_the_first_of_each_piece(lengths, capacity):
    dataset, rows = joined(lengths, capacity)
    whole = {}
    for row in range(len(dataset)):
        whole |= dict(zip(dataset[row]["input_ids"].tolist(), dataset[row]["labels"].tolist(), strict=True))
    starts = set(np.cumsum([0, *lengths[:-1]]).tolist())
    sequences, within = rows.of_epoch(0), 0
    for number in range(len(rows)):
        for piece in sequences.rows_of(number):
            ids, labels = (dataset[piece][name].tolist() for name in ("input_ids", "labels"))
            assert labels[0] == IGNORED and labels[1:] == [whole[token] for token in ids[1:]]
            within += ids[0] not in starts
    assert within == rows.num_cut, "what it costs is known"


@settings(max_examples=60)
@given(LENGTHS, st.integers(2, 40), st.sampled_from([0.3, 0.5, 1.4, 2.0]))
def test_epochs_of_other_rows_have_as_many_sequences(lengths, capacity, weight):
    if round(weight * len(lengths)) == 0:
        return
    dataset, rows = joined(lengths, capacity, weight=weight)
    for epoch in range(4):
        sequences = rows.of_epoch(epoch)
        assert len(sequences.lengths) == len(sequences.bounds) - 1 == len(rows)
        assert sequences.lengths.max() <= capacity
        expected = sorted(tokens_of(dataset, rows.mixture.rows(epoch).tolist()))
        made = [token for number in range(len(rows)) for token in tokens_of(dataset, sequences.rows_of(number))]
        assert sorted(made) == expected


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_plan_gives_every_piece_to_one_rank(world):
    dataset, rows = joined([7, 90, 3, 41, 5, 64, 2], 16)
    plan = BatchPlan(rows, 6, 1, world)
    ranks = [list(plan.micro_batches(1, rank)) for rank in range(world)]
    assert {len(passes) for passes in ranks} == {plan.micro_batches_per_epoch}
    pieces = [piece for passes in ranks for batch in passes for piece in batch if piece != FILLER]
    assert sorted(tokens_of(dataset, pieces)) == list(range(dataset.num_tokens))


def test_the_same_epoch_is_the_same_and_another_is_not():
    _, rows = joined([20] * 30, 16)
    first, again, other = (rows.of_epoch(epoch) for epoch in (0, 0, 1))
    assert first.rows.tolist() == again.rows.tolist() != other.rows.tolist()


def test_an_epoch_of_few_tokens_leaves_no_sequence_out():
    lengths = np.array([1, 1, 1, 1, 12, 12], np.int32)
    shares = (Share(np.arange(6), 2),)
    rows = JoinedRows(lengths, Mixture(shares, 0, False), 3, 3, 0, False)
    assert len(rows) == 8
    assert [rows.of_epoch(epoch).lengths.sum() for epoch in range(3)] == [2, 2, 24]
    passes = list(BatchPlan(rows, 4, 1, 1).micro_batches(0, 0))
    assert sum(batch == [FILLER] for batch in passes) == 6
