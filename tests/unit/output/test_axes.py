"""Ticks are round, labels short, and places right."""

import math

import pytest

from dumbo.output.axes import log_axis, step_axis, value_axis
from dumbo.output.numerals import count, duration, measured, percent, short


def labels(axis):
    return [label for _, label in axis.ticks]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.12345, "0.1235"),
        (12.3456, "12.35"),
        (1234.5, "1,234"),
        (31000, "31k"),
        (1234567, "1.235M"),
        (2e-5, "2e−5"),
        (0.00099999, "1e−3"),
        (-3.5, "−3.5"),
        (math.nan, "NaN"),
        (-math.inf, "−∞"),
        (5e20, "5.00e20"),
    ],
)
def test_short_numbers(value, text):
    assert short(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (9.52, "9.5s"),
        (59.7, "1m 0s"),
        (171.2, "2m 51s"),
        (3599.9, "1h 0m"),
        (12000, "3h 20m"),
        (2e5, "2d 8h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_other_numbers():
    assert count(12345) == "12,345" and count(2.0) == "2" and count("x") == "x" and count(True) == "True"
    assert percent(0.875) == "87.5%" and percent(1) == "100%"
    assert measured("eval/exact_match", 0.5) == "50%" and measured("perf/tokens_per_second", 31000) == "31k tokens/s"
    assert measured("perf/memory_gib", 3.25) == "3.25 GiB" and measured("train/loss", 1.5) == "1.5"


def test_steps_are_whole_and_begin_at_zero():
    assert labels(step_axis(1, 900)) == ["0", "200", "400", "600", "800"]
    assert labels(step_axis(1, 3)) == ["1", "2", "3"]
    assert step_axis(1, 3).place(2) == 0.5
    assert labels(step_axis(500_000, 1_000_000))[0] == "500k"


def test_one_step_stands_in_the_middle():
    assert step_axis(5, 5).place(5) == 0.5


def test_labels_of_an_axis_have_the_same_decimals():
    assert labels(value_axis(0, 0.002)) == ["0.0000", "0.0005", "0.0010", "0.0015", "0.0020"]
    assert labels(value_axis(-1.2, 1.1)) == ["−1", "0", "1"]


@pytest.mark.parametrize(
    "low, high",
    [(0, 1), (-5, 3), (1e-9, 2e-9), (1e-5, 1e-5), (9.3e-6, 1.1e-5), (1e9, 1.0001e9), (0.1, 0.1), (0, 0), (-7, -7)],
)
def test_every_range_has_ticks_inside_that_differ(low, high):
    axis = value_axis(low, high)
    assert axis.low <= low and axis.high >= high and axis.low < axis.high
    assert len(axis.ticks) >= 2 and len(set(labels(axis))) == len(axis.ticks)
    assert all(0 <= axis.place(value) <= 1 for value, _ in axis.ticks)


@pytest.mark.parametrize("low, high", [(1, 2.5), (0.3, 5), (1e-8, 1e4), (2, 3000)])
def test_a_logarithmic_axis(low, high):
    axis = log_axis(low, high)
    assert 2 <= len(axis.ticks) <= 8
    assert axis.place(math.sqrt(axis.low * axis.high)) == pytest.approx(0.5)
    assert all(0 <= axis.place(value) <= 1 for value, _ in axis.ticks)


def test_rates_begin_at_zero():
    assert value_axis(29000, 31000, from_zero=True).low == 0
