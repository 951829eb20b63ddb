"""The plan of batches: every row once per epoch, the same global batches and equal work on any number of ranks."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from dumbo.data.plan import FILLER, BatchPlan

WORLDS = (1, 2, 3, 4)


@st.composite
def plans(draw):
    """A number of rows, a physical batch, a batch that can be made of it on all of `WORLDS`, a seed, and an epoch."""
    physical = draw(st.integers(1, 4))
    batch = 12 * physical * draw(st.integers(1, 2))
    return draw(st.integers(1, 120)), batch, physical, draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 3))


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
        plan = BatchPlan(num_rows, batch, physical, world, seed, shuffle=True)
        seen = Counter(row for step in steps_of(plan, epoch) for row in rows_of(step))
        assert seen == Counter(range(num_rows))


@given(plans())
def test_a_step_has_the_same_rows_on_any_number_of_ranks(drawn):
    num_rows, batch, physical, seed, epoch = drawn
    plans_by_world = [BatchPlan(num_rows, batch, physical, world, seed, shuffle=True) for world in WORLDS]
    alone, *others = [[rows_of(step) for step in steps_of(plan, epoch)] for plan in plans_by_world]
    assert all(rows == alone for rows in others)
    assert [len(rows) for rows in alone[:-1]] == [batch] * (len(alone) - 1), "only the last step is not full"


@given(plans())
def test_a_step_has_the_same_rows_for_any_physical_batch(drawn):
    num_rows, batch, physical, seed, epoch = drawn
    one, other = (BatchPlan(num_rows, batch, size, 2, seed, shuffle=True) for size in (physical, 1))
    assert [rows_of(step) for step in steps_of(one, epoch)] == [rows_of(step) for step in steps_of(other, epoch)]


@given(plans())
def test_all_ranks_do_as_many_passes_as_the_plan_says(drawn):
    num_rows, batch, physical, seed, epoch = drawn
    for world in WORLDS:
        plan = BatchPlan(num_rows, batch, physical, world, seed, shuffle=True)
        lengths = {len(list(plan.micro_batches(epoch, rank))) for rank in range(world)}
        assert lengths == {plan.micro_batches_per_epoch}
        assert len(steps_of(plan, epoch)) == plan.steps_per_epoch == -(-num_rows // batch)


@given(plans())
def test_only_fillers_pad_and_only_where_there_are_no_rows(drawn):
    num_rows, batch, physical, seed, epoch = drawn
    for world in WORLDS:
        steps = steps_of(BatchPlan(num_rows, batch, physical, world, seed, shuffle=True), epoch)
        for step in steps:
            for rows in (rows for rank in step for rows in rank):
                assert rows == [FILLER] or (FILLER not in rows and 1 <= len(rows) <= physical)
        fillers = sum(rows == [FILLER] for step in steps for rank in step for rows in rank)
        assert fillers < world, "less than one pass of all ranks is filled"
        assert not any(rows == [FILLER] for step in steps[:-1] for rank in step for rows in rank)


@given(plans())
def test_the_order_follows_from_seed_and_epoch_alone(drawn):
    num_rows, batch, physical, seed, epoch = drawn
    plan = BatchPlan(num_rows, batch, physical, 1, seed, shuffle=True)
    again = BatchPlan(num_rows, batch, physical, 1, seed, shuffle=True)
    list(again.micro_batches(epoch + 5, 0))  # another epoch in between changes nothing
    assert list(plan.micro_batches(epoch, 0)) == list(again.micro_batches(epoch, 0))


def test_another_seed_and_another_epoch_have_other_orders():
    orders = [
        [row for rows in BatchPlan(64, 8, 2, 1, seed, shuffle=True).micro_batches(epoch, 0) for row in rows]
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert all(one != other for i, one in enumerate(orders) for other in orders[:i])
    assert list(range(64)) not in orders


def test_without_shuffling_rows_come_in_their_order_in_every_epoch():
    plan = BatchPlan(5, 4, 2, 1, seed=3, shuffle=False)
    assert [list(plan.micro_batches(epoch, 0)) for epoch in (0, 1)] == [[[0, 1], [2, 3], [4]]] * 2


def test_the_last_rows_that_do_not_reach_all_ranks_are_filled():
    plan = BatchPlan(5, 4, 1, 2, seed=3, shuffle=False)
    assert list(plan.micro_batches(0, 0)) == [[0], [2], [4]]
    assert list(plan.micro_batches(0, 1)) == [[1], [3], [FILLER]]
