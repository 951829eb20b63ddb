"""Nested values survive a checkpoint as they are, or are refused with their place."""

import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dumbo.checkpoint.tree import read_tree, write_tree

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4)
    ),
    max_leaves=20,
)


def kept(folder, value):
    write_tree(value, folder, "tree")
    return read_tree(folder, "tree")


@settings(max_examples=150)
@given(value=PLAIN)
def test_plain_values(tmp_path_factory, value):
    found = kept(tmp_path_factory.mktemp("tree"), value)
    assert found == value
    assert repr(found) == repr(value)  # True is not 1, -0.0 is not 0.0, and a tuple is no list


@pytest.mark.parametrize("key", ["$tensor", "$", "$mapping", "$tuple"])
def test_keys_that_look_like_marks(tmp_path, key):
    assert kept(tmp_path, {key: 1}) == {key: 1}
    assert kept(tmp_path, {key: {key: [1]}, "other": 2}) == {key: {key: [1]}, "other": 2}


def test_numbers_that_json_has_not(tmp_path):
    found = kept(tmp_path, [math.inf, -math.inf, math.nan, 1e-320])
    assert found[:2] == [math.inf, -math.inf] and math.isnan(found[2]) and found[3] == 1e-320


@pytest.mark.parametrize(
    "dtype",
    [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool, torch.int8],
)
def test_tensors_of_every_type(tmp_path, dtype):
    value = torch.arange(6).reshape(2, 3).to(dtype)
    found = kept(tmp_path, {"state": {0: value}})["state"][0]
    assert found.dtype == dtype and torch.equal(found, value)


def test_tensors_that_share_memory(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    value = {"whole": base, "row": base[1], "turned": base.T, "again": base, "empty": base[:0], "number": base[0, 0]}
    found = kept(tmp_path, value)
    assert all(torch.equal(found[name], tensor) and found[name].shape == tensor.shape for name, tensor in value.items())
    found["row"].zero_()
    assert torch.equal(found["whole"], base)


def test_arrays_and_types(tmp_path):
    value = {"array": np.arange(4, dtype=np.uint32), "number": np.float64(0.1), "type": torch.bfloat16, "set": {1, 2}}
    found = kept(tmp_path, value)
    assert found["array"].dtype == np.uint32 and found["array"].tolist() == [0, 1, 2, 3]
    assert isinstance(found["number"], np.float64) and found["number"] == 0.1
    assert found["type"] is torch.bfloat16 and found["set"] == {1, 2}
    assert kept(tmp_path, OrderedDict(a=1)) == {"a": 1}


def test_states_of_generators(tmp_path):
    import random

    from dumbo.bridge.training_state import random_states, set_random_states

    found = kept(tmp_path, random_states())
    drawn = (random.random(), np.random.rand(), torch.rand(1))
    set_random_states(found)
    assert (random.random(), np.random.rand(), torch.rand(1)) == drawn


def test_what_cannot_be_kept_is_named(tmp_path):
    with pytest.raises(
        TypeError, match=r"'optimizer\.state\.0\.history\.1' is a builtins\.object, which cannot be kept"
    ):
        write_tree({"optimizer": {"state": {0: {"history": [1, object()]}}}}, tmp_path, "tree")
    with pytest.raises(TypeError, match="it is a builtins.function"):
        write_tree(lambda: None, tmp_path, "tree")
