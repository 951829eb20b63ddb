"""Sources mixed by weight: exact counts, every row before any comes again, the same for the same seed."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dumbo.data.dataset import TokenDataset
from dumbo.data.mixing import mix
from dumbo.data.records import Example, Origin

HERE = Origin("rows.jsonl", 1)


def sources(*lengths):
    """Sources, each of rows with the given lengths."""
    made = [
        TokenDataset.from_examples([Example([1] * length, [1] * length, HERE) for length in of_source], number)
        for number, of_source in enumerate(lengths)
    ]
    return TokenDataset.join(made)


def counts(mixture, epoch=0):
    return Counter(mixture.rows(epoch).tolist())


def test_without_weights_every_row_comes_once():
    mixture = mix(sources([2] * 3, [2] * 4), [1, 1], "passes", 0, True)
    assert counts(mixture) == Counter(range(7)) and mixture.is_whole


def test_a_weight_is_how_often_an_epoch_goes_through_a_source():
    mixture = mix(sources([2] * 4, [2] * 4), [0.5, 2], "passes", 0, True)
    assert len(mixture) == 10 and not mixture.is_whole
    first, second = counts(mixture, 0), counts(mixture, 1)
    assert all(first[row] == second[row] == 2 for row in range(4, 8))
    halves = [{row for row in epoch if row < 4} for epoch in (first, second)]
    assert [len(half) for half in halves] == [2, 2] and not halves[0] & halves[1], "the other half comes next"


def test_shares_are_of_rows_or_of_tokens():
    data = sources([10] * 30, [2] * 30)
    by_rows = mix(data, [1, 3], "rows", 0, True)
    assert [share.count for share in by_rows.shares] == [15, 45]
    by_tokens = mix(data, [1, 3], "tokens", 0, True)
    tokens = [int(data.length[by_tokens.rows(0)][data.source[by_tokens.rows(0)] == source].sum()) for source in (0, 1)]
    assert tokens == [90, 270], "of 360 tokens in all"


def test_a_source_of_which_nothing_is_left_has_no_share():
    data = sources([2] * 6, [])
    assert [share.count for share in mix(data, [1, 5], "rows", 0, True).shares] == [6, 0]
    assert [share.count for share in mix(data, [1, 0], "passes", 0, True).shares] == [6, 0]


@settings(max_examples=60)
@given(st.integers(1, 12), st.floats(0.1, 3.3), st.integers(0, 99), st.booleans())
def test_no_row_comes_again_before_all_have_come(size, weight, seed, shuffle):
    mixture = mix(sources([2] * size), [weight], "passes", seed, shuffle)
    seen = Counter()
    for epoch in range(6):
        rows = mixture.rows(epoch)
        assert len(rows) == len(mixture) == round(weight * size)
        assert np.array_equal(rows, mixture.rows(epoch))
        seen += Counter(rows.tolist())
        times = [seen[row] for row in range(size)]
        assert max(times) - min(times) <= 1


def test_another_seed_has_other_rows():
    data = sources([2] * 50)
    one, other = (mix(data, [0.2], "passes", seed, True).rows(0).tolist() for seed in (0, 1))
    assert sorted(one) != sorted(other)
    assert mix(data, [0.2], "passes", 0, False).rows(1).tolist() == list(range(10, 20))


@pytest.mark.parametrize("by", ["rows", "tokens"])
def test_equal_weights_change_nothing_where_sources_are_alike(by):
    assert counts(mix(sources([3] * 5, [3] * 5), [1, 1], by, 0, True)) == Counter(range(10))
