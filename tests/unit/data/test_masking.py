"""Labels of tokens by the characters that are trained, against a look at every single character."""

from hypothesis import given, settings
from hypothesis import strategies as st

from dumbo.data.masking import join_spans, label_tokens, subtract_spans
from dumbo.data.records import IGNORED

SPANS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda pair: (min(pair), max(pair))), max_size=6)
OFFSETS = st.lists(st.integers(0, 3), max_size=14).map(
    lambda lengths: [(sum(lengths[:place]), sum(lengths[: place + 1])) for place in range(len(lengths))]
)


def characters(spans):
    return {place for span in spans for place in range(*span)}


@given(SPANS, OFFSETS)
@settings(max_examples=300)
def test_a_token_is_trained_if_all_of_its_characters_are(spans, offsets):
    trained = characters(spans)
    ids = list(range(100, 100 + len(offsets)))
    labels, straddling = label_tokens(ids, offsets, join_spans(spans))
    for place, (start, end) in enumerate(offsets):
        own = set(range(start, end))
        if own:
            assert (labels[place] == ids[place]) is (own <= trained)
            assert (place in straddling) is bool(own & trained and own - trained)
        else:
            assert (labels[place] == ids[place]) is (start in trained)
            assert place not in straddling
    assert set(labels) <= {*ids, IGNORED}


@given(SPANS, SPANS)
@settings(max_examples=300)
def test_spans_are_sets_of_characters(spans, removed):
    joined, left = join_spans(spans), subtract_spans(spans, removed)
    assert characters(joined) == characters(spans)
    assert characters(left) == characters(spans) - characters(removed)
    for result in (joined, left):
        assert result == sorted(result)
        assert all(start < end for start, end in result)
    assert all(first[1] < second[0] for first, second in zip(joined, joined[1:], strict=False))


def test_a_token_over_the_common_edge_of_two_spans_is_trained():
    labels, straddling = label_tokens([1, 2, 3], [(0, 2), (2, 4), (4, 6)], join_spans([(0, 3), (3, 5)]))
    assert labels == [1, 2, IGNORED]
    assert straddling.tolist() == [2]


def test_tokens_of_one_character_share_its_fate():
    labels, _ = label_tokens([1, 2, 3], [(0, 1), (0, 1), (1, 2)], [(0, 1)])
    assert labels == [1, 2, IGNORED]


def test_nothing_is_trained_without_spans_or_tokens():
    assert label_tokens([1], [(0, 1)], [])[0] == [IGNORED]
    assert label_tokens([], [], [(0, 1)])[0] == []
