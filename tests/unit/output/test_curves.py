"""What is drawn of a series."""

import numpy as np
import pytest

from dumbo.output.curves import curve, smoothed, thinned
from dumbo.output.run_reading import Series


def series(values, steps=None):
    values = np.asarray(values, dtype=float)
    return Series(np.arange(len(values), dtype=float) if steps is None else np.asarray(steps, dtype=float), values)


def test_few_points_are_all_drawn():
    assert curve(series([3, 1, 2])).points.values.tolist() == [3, 1, 2]


def test_a_million_points_become_few_and_keep_every_spike():
    chance = np.random.default_rng(0)
    values = chance.normal(size=1_000_000)
    values[123_456], values[777_777] = 50, -50
    drawn = curve(series(values), 800)
    points = drawn.points
    assert len(points.steps) <= 802
    assert points.values[points.steps == 123_456] == 50 and points.values[points.steps == 777_777] == -50
    assert points.steps[0] == 0 and points.steps[-1] == 999_999
    assert (np.diff(points.steps) > 0).all()
    assert drawn.smooth and sum(len(piece.steps) for piece in drawn.smooth) <= 400


@pytest.mark.parametrize("points", [1, 2, 10, 99])
def test_thinning_keeps_order_and_ends(points):
    kept = thinned(np.sin(np.arange(500)), points)
    assert kept[0] == 0 and kept[-1] == 499 and (np.diff(kept) > 0).all()
    assert len(kept) <= points + 2 + 2


def test_what_is_no_number_is_a_gap():
    values = [1, 2, np.nan, 4, np.inf, 6, 7]
    drawn = curve(series(values))
    assert [piece.values.tolist() for piece in drawn.pieces] == [[1, 2], [4], [6, 7]]
    assert drawn.gap_count == 2 and [step for step, _ in drawn.gaps] == [2, 4]


def test_the_smooth_line_has_the_same_gaps():
    values = np.random.default_rng(0).normal(size=100)
    values[40:45] = np.nan
    drawn = curve(series(values))
    assert [(p.steps[0], p.steps[-1]) for p in drawn.smooth] == [(0, 39), (45, 99)]


def test_nothing_but_gaps():
    drawn = curve(series([np.nan] * 100))
    assert drawn.pieces == () and drawn.smooth == () and drawn.gap_count == 100 and len(drawn.gaps) <= 40


def test_very_many_gaps_are_few_pieces():
    values = np.where(np.arange(10_000) % 2, np.nan, 1.0)
    drawn = curve(series(values), 200)
    assert len(drawn.pieces) == 1 and drawn.gap_count == 5000


def test_noise_is_smoothed_around_its_middle():
    values = 1000.0 + np.random.default_rng(0).normal(size=2000)
    line = smoothed(series(values))
    assert line is not None and np.abs(line.values[50:-50] - 1000).max() < 0.6


def test_what_is_smooth_already_stays():
    assert smoothed(series(np.linspace(0, 1, 500))) is None
    assert smoothed(series([5.0] * 500)) is None
    assert smoothed(series(np.random.default_rng(0).normal(size=10))) is None


def test_a_smooth_line_does_not_lag():
    """An average over the past alone would be late by half its width."""
    values = np.where(np.arange(1000) < 500, 0.0, 1.0) + np.random.default_rng(0).normal(size=1000) * 0.05
    line = smoothed(series(values))
    assert line is not None and abs(float(np.interp(0.5, line.values[400:600], np.arange(400, 600))) - 500) < 4
