"""A configuration as flat keys."""

from hypothesis import given
from hypothesis import strategies as st

from dumbo.trackers.flatten import as_text, flatten, renamed


def test_mappings_become_dotted_keys_and_plain_lists_stay():
    tree = {"a": {"b": 1, "c": {}}, "plugins": ["x", "y"], "datasets": [{"path": "p"}, {"path": "q"}], "none": None}
    assert flatten(tree) == {
        "a.b": 1,
        "a.c": "{}",
        "plugins": ["x", "y"],
        "datasets.0.path": "p",
        "datasets.1.path": "q",
        "none": None,
    }


def test_an_empty_configuration_has_no_keys():
    assert flatten({}) == {}


def test_keys_that_become_one_are_told_apart():
    assert flatten({"a.b": 1, "a": {"b": 2}}) == {"a.b": 1, "a.b_2": 2}
    assert renamed({"a#": 1, "a?": 2, "a_": 3}, lambda key: key[0] + "_") == {"a_": 1, "a__2": 2, "a__3": 3}


def test_values_as_texts():
    values = ("text", "", 1, 1e-05, True, None, ["é", 1], float("nan"), float("inf"))
    assert [as_text(value) for value in values] == [
        "text",
        "",
        "1",
        "1e-05",
        "true",
        "null",
        '["é", 1]',
        "NaN",
        "Infinity",
    ]


def leaves(value):
    if isinstance(value, dict):
        return sum(map(leaves, value.values())) if value else 1
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return sum(map(leaves, value))
    return 1


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
trees = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab._", max_size=3), inner, max_size=3)
)


@given(st.dictionaries(st.text("ab._", max_size=3), trees, min_size=1, max_size=4))
def test_no_value_is_lost(tree):
    assert len(flatten(tree)) == leaves(tree)
