"""Packing: no row is lost or cut, sequences are full, and their number is known for every epoch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dumbo.data.mixing import Mixture, Share
from dumbo.data.packing import pack, pack_pieces
from dumbo.data.sequences import PackedRows, SingleRows


def best_fit_decreasing(lengths, capacity):
    """How many sequences the textbook's algorithm needs."""
    spaces = []
    for length in sorted(lengths, reverse=True):
        fitting = [space for space in spaces if space >= length]
        if fitting:
            spaces.remove(min(fitting))
        spaces.append((min(fitting) if fitting else capacity) - length)
    return len(spaces)


@given(st.integers(1, 40).flatmap(lambda top: st.tuples(st.just(top), st.lists(st.integers(1, top), max_size=40))))
def test_rows_are_packed_as_the_textbook_packs_them(drawn):
    capacity, lengths = drawn
    sequences = pack(np.array(lengths, np.int32), capacity)
    used = np.bincount(sequences, weights=lengths) if lengths else np.zeros(0)
    assert len(sequences) == len(lengths) and (used > 0).all() and (used <= capacity).all()
    assert len(used) == best_fit_decreasing(lengths, capacity)


def test_a_row_over_the_capacity_is_refused():
    with pytest.raises(ValueError, match="a row has 9 tokens, and a sequence 8"):
        pack(np.array([3, 9], np.int32), 8)


@settings(max_examples=80)
@given(st.integers(1, 200).flatmap(lambda top: st.tuples(st.just(top), st.lists(st.integers(1, 4 * top), max_size=30))))
def test_rows_over_the_capacity_are_cut_into_what_is_free(drawn):
    capacity, lengths = drawn
    pieces = pack_pieces(np.array(lengths, np.int32), capacity)
    tokens = sorted(
        (row, token)
        for row, first, length in zip(pieces.row.tolist(), pieces.first.tolist(), pieces.length.tolist(), strict=True)
        for token in range(first, first + length)
    )
    assert tokens == [(row, token) for row, length in enumerate(lengths) for token in range(length)], "each once"
    used = np.bincount(pieces.sequence, weights=pieces.length) if lengths else np.zeros(0)
    assert (used > 0).all() and (used <= capacity).all()
    whole = np.bincount(pieces.row, minlength=len(lengths)) == 1
    assert (whole == (np.array(lengths) <= capacity)).all(), "no other row is cut"
    assert (pieces.length[~whole[pieces.row]] >= max(capacity // 64, 1)).all()
    again = pack_pieces(np.array(lengths[::-1], np.int32), capacity)
    assert len(set(again.sequence.tolist())) == len(set(pieces.sequence.tolist()))


@pytest.mark.parametrize("capacity", [512, 1024])
def test_long_rows_fill_what_others_leave_free(capacity):
    lengths = np.exp(np.random.default_rng(0).normal(6.1, 0.8, 20_000)).astype(np.int32) + 1
    pieces = pack_pieces(lengths, capacity)
    assert lengths.sum() / (capacity * (pieces.sequence.max() + 1)) > 0.995


@pytest.mark.parametrize("capacity", [512, 1024, 4096])
def test_many_rows_leave_next_to_nothing_free(capacity):
    drawn = np.exp(np.random.default_rng(0).normal(5.6, 0.9, 20_000)).astype(np.int32) + 1
    lengths = np.minimum(drawn, capacity)
    sequences = pack(lengths, capacity)
    assert lengths.sum() / (capacity * (sequences.max() + 1)) > 0.995


def of(lengths, capacity=16, shuffle=True, epochs=1, shares=None, seed=3):
    shares = shares or (Share(np.arange(len(lengths)), len(lengths)),)
    mixture = Mixture(shares, seed, shuffle)
    return PackedRows(np.array(lengths, np.int32), mixture, capacity, epochs, seed, shuffle)


def contents(epoch):
    return [epoch.rows_of(number) for number in range(len(epoch.bounds) - 1)]


@settings(max_examples=50)
@given(st.lists(st.integers(1, 16), min_size=1, max_size=60), st.integers(0, 4), st.booleans())
def test_every_epoch_has_every_row_once_in_as_many_sequences(lengths, epoch, shuffle):
    packed = of(lengths, shuffle=shuffle)
    made = packed.of_epoch(epoch)
    assert sorted(made.rows.tolist()) == list(range(len(lengths)))
    assert len(contents(made)) == len(packed) == best_fit_decreasing(lengths, 16)
    assert [sum(lengths[row] for row in rows) for rows in contents(made)] == made.lengths.tolist()
    assert contents(packed.of_epoch(epoch)) == contents(made), "asked again"


def test_rows_of_one_length_meet_others_in_another_epoch():
    packed = of([4] * 40)
    first, second = (sorted(sorted(rows) for rows in contents(packed.of_epoch(epoch))) for epoch in (0, 1))
    assert first != second and all(len(rows) == 4 for rows in first + second)


def test_without_shuffling_sequences_come_by_their_first_rows():
    made = of([10, 3, 9, 6, 7, 13], shuffle=False).of_epoch(0)
    assert contents(made) == [[0, 3], [1, 5], [2, 4]]


@settings(max_examples=50)
@given(st.lists(st.integers(1, 16), min_size=2, max_size=40), st.floats(0.2, 2.7), st.integers(1, 5))
def test_epochs_of_other_rows_have_as_many_sequences(lengths, weight, epochs):
    share = Share(np.arange(len(lengths)), max(1, round(weight * len(lengths))))
    packed = of(lengths, shares=(share,), epochs=epochs)
    for epoch in range(epochs):
        made = packed.of_epoch(epoch)
        assert len(made.bounds) - 1 == len(packed) and len(made.rows) == share.count
        assert (np.diff(made.bounds) > 0).all() or share.count < len(packed)
        assert (made.lengths <= 16).all()


def test_epochs_of_longer_and_shorter_rows_have_no_empty_sequence():
    draw = np.random.default_rng(0)
    lengths = np.exp(draw.uniform(np.log(1000), np.log(100_000), 20)).astype(np.int32)
    packed = of(lengths, capacity=512, shares=(Share(np.arange(20), 10),), epochs=8)
    for epoch in range(8):
        made = packed.of_epoch(epoch)
        assert len(made.lengths) == len(packed) and (made.lengths > 0).all() and (made.lengths <= 512).all()
        rows = np.unique(made.rows)
        assert made.lengths.sum() == lengths[rows].sum(), "no token is lost"


def test_many_epochs_are_planned_in_no_time():
    packed = of([3, 9, 4, 7, 5], shares=(Share(np.arange(5), 2),), epochs=10**9)
    made = packed.of_epoch(10**8)
    assert len(made.lengths) == len(packed) and len(made.rows) == 2


def test_single_rows_are_sequences_of_their_own():
    mixture = Mixture((Share(np.arange(5), 5),), 3, True)
    made = SingleRows(np.array([3, 1, 4, 1, 5], np.int32), mixture, 3, True).of_epoch(1)
    assert sorted(contents(made)) == [[0], [1], [2], [3], [4]]
    assert made.lengths.tolist() == [[3, 1, 4, 1, 5][row] for row in made.rows]
