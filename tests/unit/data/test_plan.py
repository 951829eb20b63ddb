"""The plan of batches: every row once per epoch, the same global batches and equal work on any number of ranks."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumbo.data.mixing import Mixture, Share
from dumbo.data.plan import FILLER, BatchPlan
from dumbo.data.sequences import SingleRows

WORLDS = (1, 2, 3, 4)


@st.composite
def plans(draw):
    """A number of rows, a physical batch, a batch that can be made of it on all of `WORLDS`, a seed, and an epoch."""
    physical = draw(st.integers(1, 4))
    batch = 12 * physical * draw(st.integers(1, 2))
    return draw(st.integers(1, 120)), batch, physical, draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 3))


def plan_of(num_rows, batch, physical, world, seed, shuffle=True, lengths=None, **options):
    """Each row is a sequence, all of one length unless `lengths` are given."""
    lengths = np.full(num_rows, 5, np.int32) if lengths is None else np.array(lengths, np.int32)
    rows = SingleRows(lengths, Mixture((Share(np.arange(num_rows), num_rows),), seed, shuffle), seed, shuffle)
    return BatchPlan(rows, batch, physical, world, **options)


def steps_of(plan, epoch):
    """The rows of each optimizer step, per rank a list of forward passes."""
    ranks = [list(plan.micro_batches(epoch, rank)) for rank in range(plan.world_size)]
    passes = plan.batch_size // (plan.physical_batch_size * plan.world_size)
    count = range(0, len(ranks[0]), passes)
    return [[rank[start : start + passes] for rank in ranks] for start in count]


def rows_of(step):
    return sorted(row for rank in step for rows in rank for row in rows if row != FILLER)


@given(plans())
def test_every_row_comes_once_per_epoch(drawn):
    num_rows, batch, physical, seed, epoch = drawn
    for world in WORLDS:
        plan = plan_of(num_rows, batch, physical, world, seed)
        seen = Counter(row for step in steps_of(plan, epoch) for row in rows_of(step))
        assert seen == Counter(range(num_rows))


@given(plans())
def test_a_step_has_the_same_rows_on_any_number_of_ranks(drawn):
    num_rows, batch, physical, seed, epoch = drawn
    plans_by_world = [plan_of(num_rows, batch, physical, world, seed) for world in WORLDS]
    alone, *others = [[rows_of(step) for step in steps_of(plan, epoch)] for plan in plans_by_world]
    assert all(rows == alone for rows in others)
    assert [len(rows) for rows in alone[:-1]] == [batch] * (len(alone) - 1), "only the last step is not full"


@given(plans())
def test_a_step_has_the_same_rows_for_any_physical_batch(drawn):
    num_rows, batch, physical, seed, epoch = drawn
    one, other = (plan_of(num_rows, batch, size, 2, seed) for size in (physical, 1))
    assert [rows_of(step) for step in steps_of(one, epoch)] == [rows_of(step) for step in steps_of(other, epoch)]


@given(plans())
def test_all_ranks_do_as_many_passes_as_the_plan_says(drawn):
    num_rows, batch, physical, seed, epoch = drawn
    for world in WORLDS:
        plan = plan_of(num_rows, batch, physical, world, seed)
        lengths = {len(list(plan.micro_batches(epoch, rank))) for rank in range(world)}
        assert lengths == {plan.micro_batches_per_epoch}
        assert len(steps_of(plan, epoch)) == plan.steps_per_epoch == -(-num_rows // batch)


@given(plans())
def test_only_fillers_pad_and_only_where_there_are_no_rows(drawn):
    num_rows, batch, physical, seed, epoch = drawn
    for world in WORLDS:
        steps = steps_of(plan_of(num_rows, batch, physical, world, seed), epoch)
        for step in steps:
            for rows in (rows for rank in step for rows in rank):
                assert rows == [FILLER] or (FILLER not in rows and 1 <= len(rows) <= physical)
        fillers = sum(rows == [FILLER] for step in steps for rank in step for rows in rank)
        assert fillers < world, "less than one pass of all ranks is filled"
        assert not any(rows == [FILLER] for step in steps[:-1] for rank in step for rows in rank)


@given(plans())
def test_the_order_follows_from_seed_and_epoch_alone(drawn):
    num_rows, batch, physical, seed, epoch = drawn
    plan = plan_of(num_rows, batch, physical, 1, seed)
    again = plan_of(num_rows, batch, physical, 1, seed)
    list(again.micro_batches(epoch + 5, 0))  # another epoch in between changes nothing
    assert list(plan.micro_batches(epoch, 0)) == list(again.micro_batches(epoch, 0))


def test_another_seed_and_another_epoch_have_other_orders():
    orders = [
        [row for rows in plan_of(64, 8, 2, 1, seed).micro_batches(epoch, 0) for row in rows]
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert all(one != other for i, one in enumerate(orders) for other in orders[:i])
    assert list(range(64)) not in orders


def test_without_shuffling_rows_come_in_their_order_in_every_epoch():
    plan = plan_of(5, 4, 2, 1, 3, shuffle=False)
    assert [list(plan.micro_batches(epoch, 0)) for epoch in (0, 1)] == [[[0, 1], [2, 3], [4]]] * 2


def test_the_last_rows_that_do_not_reach_all_ranks_are_filled():
    plan = plan_of(5, 4, 1, 2, 3, shuffle=False)
    assert list(plan.micro_batches(0, 0)) == [[0], [2], [4]]
    assert list(plan.micro_batches(0, 1)) == [[1], [3], [FILLER]]


def test_passes_have_rows_of_similar_lengths_and_steps_the_same_rows():
    lengths = list(np.random.default_rng(0).permutation(96) + 1)
    plan = plan_of(96, 24, 4, 2, 3, lengths=lengths)
    plain = plan_of(96, 24, 4, 2, 3)
    assert [rows_of(step) for step in steps_of(plan, 1)] == [rows_of(step) for step in steps_of(plain, 1)]
    for step in steps_of(plan, 1):
        passes = [[lengths[row] for rank in step for row in rank[number]] for number in range(3)]
        assert min(passes[0]) > max(passes[1]) and min(passes[1]) > max(passes[2]), "the longest come first"
    assert plan.padding_share() < 0.75 * plain_padding(plain, lengths)


def plain_padding(plan, lengths):
    """What the plan's passes would be padded with, were they made without regard to the lengths."""
    passes = [[lengths[row] for row in rows] for rank in (0, 1) for rows in plan.micro_batches(0, rank)]
    return 1 - sum(map(sum, passes)) / sum(len(rows) * max(rows) for rows in passes)


def test_padding_is_what_is_padded():
    plan = plan_of(4, 4, 2, 1, 0, shuffle=False, lengths=[1, 4, 2, 3])
    assert list(plan.micro_batches(0, 0)) == [[1, 3], [2, 0]]
    assert plan.padding_share() == pytest.approx(2 / 12)


def test_grouped_steps_are_of_rows_of_similar_lengths():
    lengths = list(np.random.default_rng(0).permutation(100) + 1)
    plan = plan_of(100, 8, 8, 1, 3, lengths=lengths, grouped_steps=4)
    spans = [[lengths[row] for row in rows] for rows in plan.micro_batches(0, 0)]
    seen = Counter(length for step in spans for length in step)
    assert seen == Counter(range(1, 101)) and [len(step) for step in spans] == [8] * 12 + [4]
    for window in range(0, 12, 4):
        ordered = sorted(spans[window : window + 4])
        assert all(max(one) < min(other) for one, other in zip(ordered, ordered[1:], strict=False))
    assert list(plan.micro_batches(0, 0)) == list(plan.micro_batches(0, 0)) != list(plan.micro_batches(1, 0))
