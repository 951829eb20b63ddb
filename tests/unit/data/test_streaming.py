"""A stream of rows: every token once per pass, from any place on again, the same for any number of ranks."""

import itertools
import json
import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dumbo.data.ahead import Ahead
from dumbo.data.plan import BatchPlan
from dumbo.data.records import IGNORED, Example, Origin
from dumbo.data.sequences import single_rows
from dumbo.data.streaming import Stream, StreamSettings, rank_batches
from dumbo.data.windows import Piece, group_length
from dumbo.errors import ConfigError, DataError

# Of each source, rows as lengths; 0 is a row that cannot be used.
SOURCES = st.lists(st.lists(st.integers(0, 25), min_size=1, max_size=8), min_size=1, max_size=3).filter(
    lambda sources: all(any(lengths) for lengths in sources)
)
PACKINGS = st.sampled_from([False, True, "joined"])


class Rows:
    """Rows of sources, whose tokens tell source, row and place; notes what was asked for, and read."""

    def __init__(self, sources):
        self.sources, self.asked, self.made = sources, [], []

    def __call__(self, source, skip):
        self.asked.append((source, skip))
        for row, length in enumerate(self.sources[source][skip:], skip):
            self.made.append((source, row))
            yield self.example(source, row) if length else None

    def example(self, source, row):
        ids = [source * 10_000 + row * 100 + place for place in range(self.sources[source][row])]
        return Example(ids, [IGNORED if number % 4 == 1 else number for number in ids], Origin(f"{source}", row + 1))


def stream_of(sources, state=None, rows=None, **changes):
    weights = changes.pop("weights", (1.0,) * len(sources))
    options = {"capacity": 10, "too_long": "split", "window_rows": 3, "seed": 1} | changes
    told = []
    stream = Stream(rows or Rows(sources), StreamSettings(weights=weights, **options), state, told.append)
    stream.told = told
    return stream


def take(stream, count):
    """The sequences, each a list of pieces as tokens and labels."""
    try:
        return [
            [tuple((name, tuple(values.tolist())) for name, values in piece.item.items()) for piece in group]
            for group in stream.take(count)
        ]
    finally:
        stream.close()


@st.composite
def streams(draw):
    sources = draw(SOURCES)
    weights = tuple(draw(st.sampled_from([0.2, 1.0, 3.0])) for _ in sources)
    changes = {
        "weights": weights,
        "packing": draw(PACKINGS),
        "mix": draw(st.sampled_from(["rows", "tokens"])),
        "capacity": draw(st.integers(4, 30)),
        "window_rows": draw(st.integers(1, 12)),
        "shuffle": draw(st.booleans()),
        "seed": draw(st.integers(0, 5)),
    }
    return sources, changes


@settings(max_examples=100)
@given(streams(), st.integers(0, 30), st.integers(1, 20))
def test_a_stream_goes_on_from_any_place(drawn, before, after):
    sources, changes = drawn
    whole = take(stream_of(sources, **changes), before + after)
    first = stream_of(sources, **changes)
    assert take(first, before) == whole[:before]
    state = json.loads(json.dumps(first.state()))
    second = stream_of(sources, state, **changes)
    assert second.state() == state
    assert take(second, after) == whole[before:]
    uninterrupted = stream_of(sources, **changes)
    take(uninterrupted, before + after)
    assert second.trained == uninterrupted.trained and second.state() == uninterrupted.state()


@settings(max_examples=60)
@given(streams(), st.integers(0, 20), st.integers(1, 20))
def test_what_is_skipped_is_not_made_again(drawn, before, after):
    sources, changes = drawn
    first = stream_of(sources, **changes)
    take(first, before)
    state = first.state()
    rows = Rows(sources)
    take(stream_of(sources, state, rows, **changes), after)
    firsts = {}
    for source, row in rows.made:
        firsts.setdefault(source, row)
    assert all(row == state["sources"][source]["row"] % len(sources[source]) for source, row in firsts.items())


@settings(max_examples=100)
@given(streams(), st.integers(1, 40))
def test_every_token_comes_once_per_pass_with_its_label(drawn, count):
    sources, changes = drawn
    stream = stream_of(sources, **changes)
    groups = []
    for _ in range(count):
        [group] = stream.take(1)
        groups.append((stream.state()["window"], group))
    stream.close()
    # What the windows before this one were made of has been taken, or is carried over into this one.
    state = stream.state()
    pieces = [piece for window, group in groups if window < state["window"] for piece in group]
    pieces += [Piece.read(piece) for piece in state["carried"]]
    seen = Counter(pair for p in pieces for pair in zip(p.tokens.tolist(), p.trained.tolist(), strict=True))
    assert seen == tokens_read(sources, state["sources"], changes)
    if changes["packing"] == "joined":
        assert {group_length(group) for _, group in groups} == {changes["capacity"]}


def tokens_read(sources, positions, changes):
    """The tokens of all rows up to these positions, with whether they are trained, by how often they were read."""
    rows, read = Rows(sources), Counter()
    for source, position in enumerate(positions):
        for row, length in enumerate(sources[source]):
            ids = rows.example(source, row).input_ids
            size = max(length, 1) if changes["packing"] == "joined" else changes["capacity"]
            for part in parts_of(ids, size):
                # A piece that was cut off and has nothing to train is left out.
                if length <= size or any(number % 4 != 1 for number in part[1:]):
                    times = position["passes"] + (row < position["row"])
                    read.update({(number, number % 4 != 1): times for number in part})
    return +read


def parts_of(ids, size):
    return [tuple(ids[first : first + size]) for first in range(0, len(ids), size)]


@settings(max_examples=60)
@given(streams(), st.integers(1, 60))
def test_no_token_comes_again_before_its_pass_is_over(drawn, count):
    sources, changes = drawn
    stream = stream_of(sources, **changes)
    pieces = [piece for group in stream.take(count) for piece in group]
    stream.close()
    for source in range(len(sources)):
        seen = Counter(token for piece in pieces if piece.source == source for token in piece.tokens.tolist())
        assert max(seen.values(), default=0) <= stream.trained[source].passes <= stream.positions[source].passes + 1
        if not changes["shuffle"] and changes["packing"] == "joined":
            # In the files' order, without a gap.
            order = [token for piece in pieces if piece.source == source for token in piece.tokens.tolist()]
            rows = Rows(sources)
            one_pass = [t for row, n in enumerate(sources[source]) if n for t in rows.example(source, row).input_ids]
            assert order == (one_pass * (len(order) // len(one_pass) + 1))[: len(order)]


@settings(max_examples=100)
@given(streams(), st.integers(1, 60))
def test_no_row_comes_again_before_all_others_have_come(drawn, count):
    sources, changes = drawn
    if changes["packing"] is True:
        # A row of a small source's next pass may fill a sequence.
        sources, changes = sources[:1], changes | {"weights": (1.0,)}
    stream = stream_of(sources, **changes)
    groups = stream.take(count)
    stream.close()
    for source, lengths in enumerate(sources):
        numbers = [[p.pass_number for p in group if p.source == source] for group in groups]
        passes = [number for group in numbers for number in sorted(group)]
        assert passes == sorted(passes) and set(passes) == set(range(stream.trained[source].passes))
        rows = [p.tokens[0] // 100 for group in groups for p in group if p.source == source and p.begins]
        if changes["capacity"] >= 25 and not changes["packing"]:
            of_pass = sum(map(bool, lengths))
            parts = [rows[first : first + of_pass] for first in range(0, len(rows), of_pass)]
            assert all(len(set(part)) == len(part) for part in parts)


@pytest.mark.parametrize("packing", [False, True, "joined"])
@pytest.mark.parametrize("seed", range(5))
def test_a_window_ends_where_its_only_source_does(packing, seed):
    stream = stream_of([[10] * 10], packing=packing, window_rows=40, seed=seed)
    order = [int(piece.tokens[0]) // 100 for group in stream.take(30) for piece in group]
    stream.close()
    passes = [order[first : first + 10] for first in (0, 10, 20)]
    assert all(sorted(rows) == list(range(10)) for rows in passes) and passes[0] != passes[1] != passes[2]


@pytest.mark.parametrize("packing", [False, "joined"])
def test_a_small_source_makes_no_tiny_windows_and_keeps_its_passes_apart(packing):
    stream = stream_of([[10] * 3, [10] * 55], packing=packing, window_rows=20)
    groups = stream.take(120)
    stream.close()
    # The sixth window ends with the large source, after 10 rows; the others have 20.
    assert stream.state()["window"] == 6
    orders = [[int(p.tokens[0]) % 10_000 // 100 for g in groups for p in g if p.source == source] for source in (0, 1)]
    assert all(sorted(orders[0][first : first + 3]) == [0, 1, 2] for first in range(0, 57, 3))
    assert len(set(orders[1][:55])) == 55 < len(orders[1])


def test_joined_pieces_do_not_overlap_and_lose_no_tail():
    """What peers get wrong: windows that repeat tokens, a dropped last part, documents cut to the window's length."""
    stream = stream_of([[95, 7, 33]], packing="joined", shuffle=False, window_rows=1)
    tokens = [token for group in stream.take(27) for piece in group for token in piece.tokens.tolist()]
    stream.close()
    document = [row * 100 + place for row, length in enumerate([95, 7, 33]) for place in range(length)]
    assert tokens == document * 2 and stream.trained[0].passes == 2


def test_the_first_token_of_a_piece_is_not_trained_and_only_that():
    stream = stream_of([[25]], packing="joined", shuffle=False)
    labels = [piece.item["labels"].tolist() for group in stream.take(5) for piece in group]
    stream.close()
    plain = [IGNORED if place % 4 == 1 else place for place in range(25)]
    assert labels[:3] == [[IGNORED, *plain[1:10]], [IGNORED, *plain[11:20]], [IGNORED, *plain[21:25]]]


@settings(max_examples=60)
@given(SOURCES, st.sampled_from(["rows", "tokens"]), st.integers(1, 40))
def test_sources_are_mixed_by_their_shares(sources, mix, count):
    weights = tuple(float(number + 1) for number in range(len(sources)))
    stream = stream_of(sources, weights=weights, mix=mix, window_rows=1, shuffle=False)
    stream.take(count)
    stream.close()
    had = [getattr(position, mix) for position in stream.positions]
    most = 25 if mix == "tokens" else 1
    for weight, number in zip(weights, had, strict=True):
        assert abs(number - weight / sum(weights) * sum(had)) <= most * len(sources)


def test_a_source_of_weight_zero_is_never_opened():
    rows = Rows([[3], [3]])
    take(stream_of(rows.sources, rows=rows, weights=(1.0, 0.0)), 9)
    assert {source for source, _ in rows.asked} == {0}


@pytest.mark.parametrize("shuffle", [True, False])
def test_a_window_is_shuffled_and_no_row_leaves_it(shuffle):
    stream = stream_of([[1] * 12], window_rows=4, shuffle=shuffle)
    order = [piece.tokens[0] // 100 for group in stream.take(24) for piece in group]
    stream.close()
    windows = [order[first : first + 4] for first in range(0, 24, 4)]
    assert [sorted(window) for window in windows] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]] * 2
    assert (order != sorted(order[:12]) * 2) == shuffle


def test_packed_windows_are_full_and_nothing_waits_for_ever():
    draw = np.random.default_rng(0)
    lengths = np.exp(draw.normal(5.0, 0.9, 4000)).astype(int).clip(1, 512).tolist()
    rows = Rows([lengths])
    rows.example = lambda source, row: Example(
        array := np.full(lengths[row], row, np.int32), array, Origin("rows", row + 1)
    )
    stream = stream_of([lengths], rows=rows, packing=True, capacity=512, window_rows=500)
    groups = []
    while stream.state()["window"] < 8:
        groups += stream.take(1)
    stream.close()
    sizes = [group_length(group) for group in groups[:-1]]
    assert max(sizes) <= 512 and sum(sizes) / len(sizes) / 512 > 0.995
    seen = Counter(int(piece.tokens[0]) for group in groups[:-1] for piece in group)
    waiting = {int(piece["tokens"][0]) for piece in stream.state()["carried"]}
    assert set(seen) | waiting == set(range(4000)) and max(seen.values()) == 1


def test_rows_that_fit_with_no_other_wait_for_one_window_and_no_more():
    stream = stream_of([[7] * 60], packing=True, window_rows=2, shuffle=False)
    waiting = {}
    while stream.state()["window"] < 20:
        stream.take(1)
        state = stream.state()
        waiting[state["window"]] = {piece["tokens"][0] for piece in state["carried"]}
    stream.close()
    assert all(waiting[window] for window in range(1, 20))
    assert all(waiting[window].isdisjoint(waiting[window + 1]) for window in range(1, 19))


@pytest.mark.parametrize(("policy", "rows", "tokens"), [("drop", 2, 12), ("truncate", 3, 22), ("split", 3, 37)])
def test_long_rows(policy, rows, tokens):
    stream = stream_of([[4, 25, 8]], too_long=policy, window_rows=rows, shuffle=False)
    stream.take({"drop": 2, "truncate": 3, "split": 5}[policy])
    stream.close()
    assert (stream.trained[0].rows, stream.trained[0].tokens) == (rows, tokens)
    assert stream.positions[0].too_long == 1


def test_a_long_row_is_an_error_where_it_stands():
    stream = stream_of([[4, 25, 8]], too_long="error", window_rows=1)
    assert len(stream.take(1)) == 1
    with pytest.raises(DataError, match=r"^0:2: the row is longer than 10 tokens \(it has 25\)\n.*too_long: drop"):
        stream.take(1)
    with pytest.raises(DataError):
        stream.take(1)


@pytest.mark.parametrize(("lengths", "expected"), [([], "has no rows"), ([0, 0], "has no row to train on among its 2")])
def test_a_source_that_gives_nothing_is_an_error_and_no_endless_loop(lengths, expected):
    stream = stream_of([[3], lengths])
    with pytest.raises(ConfigError, match=f"^datasets.1: {expected}"):
        stream.take(10)


def test_the_end_of_a_pass_is_told_with_its_rows_and_tokens():
    stream = stream_of([[3, 0, 5]], window_rows=4, shuffle=False)
    stream.take(2)
    assert stream.told == [] and stream.trained[0].passes == 1, "what is read ahead is not trained on"
    stream.take(1)
    assert [(end.source, end.number, end.rows, end.tokens) for end in stream.told] == [(0, 1, 2, 8)]
    assert stream.trained[0].passes == 2
    again = stream_of([[3, 0, 5]], stream.state(), window_rows=4, shuffle=False)
    again.take(2)
    assert [(end.number, end.rows, end.tokens) for end in again.told] == [(2, 2, 8)]
    stream.close()
    again.close()


def test_long_rows_are_counted_in_the_first_pass_alone():
    stream = stream_of([[4, 25, 8]], too_long="drop", window_rows=2)
    stream.take(9)
    stream.close()
    assert stream.positions[0].passes >= 4 and stream.positions[0].too_long == 1


def test_a_state_of_other_sources_is_refused():
    state = stream_of([[3]]).state()
    with pytest.raises(ValueError, match="of 1 sources cannot go on with 2"):
        stream_of([[3], [4]], state)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("physical", [1, 2])
def test_ranks_share_a_global_batch_as_a_plan_does(world, physical):
    stream = stream_of([list(range(1, 20))], capacity=30, window_rows=7)
    batch = stream.take(12)
    stream.close()
    ranks = [list(rank_batches(batch, physical, world, rank)) for rank in range(world)]
    assert {len(passes) for passes in ranks} == {12 // (physical * world)}
    lengths = np.array([group_length(group) for group in batch], np.int32)
    plan = BatchPlan(single_rows(lengths, 0, shuffle=False), 12, physical, world)
    for rank, passes in enumerate(ranks):
        planned = [[batch[row][0] for row in rows] for rows in plan.micro_batches(0, rank)]
        assert planned == passes


def test_one_window_is_made_ahead_and_no_more():
    made, gate = [], threading.Event()

    def items():
        for number in itertools.count():
            made.append(number)
            if number == 1:
                gate.set()
            yield number

    ahead = Ahead(items())
    assert made == [] and next(ahead) == 0
    assert gate.wait(5), "the next one is made without being asked for"
    assert made == [0, 1] and next(ahead) == 1
    ahead.close()
    with pytest.raises(StopIteration):
        next(ahead)


def test_the_thread_ends_with_the_stream():
    stream = stream_of([[3]])
    stream.take(2)
    assert any(thread.name == "dumbo-stream" for thread in threading.enumerate())
    stream.close()
    assert all(thread.name != "dumbo-stream" for thread in threading.enumerate())
