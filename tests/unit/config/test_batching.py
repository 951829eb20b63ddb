"""Batch sizes become accumulated passes, or a message with sizes that work."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumbo.config.batching import accumulation_steps, batch_problem

sizes = st.integers(1, 300)
worlds = st.integers(1, 16)


def numbers(hint):
    return [int(number) for number in re.findall(r"\d+", hint)]


@given(sizes, sizes, worlds)
def test_sizes_divide_or_are_a_problem(batch_size, physical, world):
    problem = batch_problem(batch_size, physical, world)
    if problem is None:
        passes = accumulation_steps(batch_size, physical, world)
        assert passes >= 1
        assert passes * physical * world == batch_size
    else:
        assert batch_size % (physical * world) != 0


@given(sizes, sizes, worlds)
def test_every_size_that_is_suggested_works(batch_size, physical, world):
    problem = batch_problem(batch_size, physical, world)
    if problem is None:
        return
    totals, *physicals = problem.hints
    assert "batch_size" in totals
    for suggested in numbers(totals):
        assert batch_problem(suggested, physical, world) is None
        assert abs(suggested - batch_size) < physical * world, "no nearer one is passed over"
    for hint in physicals:
        (suggested,) = numbers(hint)
        assert batch_problem(batch_size, suggested, world) is None
        closer = range(physical - abs(suggested - physical) + 1, physical + abs(suggested - physical))
        assert all(batch_problem(batch_size, size, world) for size in closer if size > 0)
    assert bool(physicals) == (batch_size % world == 0)


@pytest.mark.parametrize(
    ("batch_size", "physical", "world", "words"),
    [
        (5, 2, 1, ("2 per pass on one device (2 at once)", "write batch_size: 4 or 6", "or physical_batch_size: 1")),
        (2, 4, 1, ("write batch_size: 4", "or physical_batch_size: 2")),
        (6, 2, 4, ("2 per pass on 4 devices (8 at once)", "write batch_size: 8")),
        (12, 4, 2, ("write batch_size: 8 or 16", "or physical_batch_size: 3")),
    ],
)
def test_the_message(batch_size, physical, world, words):
    text = str(batch_problem(batch_size, physical, world))
    assert text.startswith("trainer.arguments.batch_size: ")
    assert all(word in text for word in words), text
