"""Axes: from the numbers to draw to a range, to round ticks with labels, and to places between 0 and 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dumbo.output.numerals import short

Tick = tuple[float, str]
"""A value and its label."""


@dataclass(frozen=True)
class Axis:
    """A range of values on a line from 0 to 1."""

    low: float
    high: float
    ticks: tuple[Tick, ...]
    is_log: bool = False

    def place(self, value: float) -> float:
        """Where `value` is: 0 at the low end, 1 at the high one."""
        if self.is_log:
            return (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return (value - self.low) / (self.high - self.low)


def step_axis(low: float, high: float, wanted: int = 6) -> Axis:
    """Optimizer steps, from the first to the last; ticks are whole."""
    if high <= low:
        low, high = low - 1, high + 1
    if 0 < low < 0.1 * high:
        low = 0.0
    size = max(1.0, _round_size((high - low) / wanted))
    return Axis(low, high, _ticks(low, high, size))


def value_axis(low: float, high: float, wanted: int = 4, *, from_zero: bool = False) -> Axis:
    """Values of a metric, with a little air above and below."""
    if from_zero:
        low, high = min(0.0, low), max(0.0, high)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        margin = 0.1 * abs(high) or 1.0
        low, high = (low - margin, high + margin) if not from_zero or not high else (0.0, high * 1.2)
    size = _round_size((high - low) / wanted)
    air = 0.04 * (high - low)
    bottom = low if from_zero and low == 0 else low - air
    return Axis(bottom, high + air, _ticks(bottom, high + air, size))


def log_axis(low: float, high: float) -> Axis:
    """Positive values, equal ratios as equal distances."""
    first, last = math.log10(low), math.log10(high)
    air = max(0.04 * (last - first), 0.02)
    bottom, top = 10 ** (first - air), 10 ** (last + air)
    decades = range(math.ceil(math.log10(bottom)), math.floor(math.log10(top)) + 1)
    if last - first > 3:
        every = max(1, math.ceil(len(decades) / 5))
        values = [10.0**power for power in decades][::every]
    elif last - first > 0.9:
        around = range(math.floor(math.log10(bottom)), math.ceil(math.log10(top)) + 1)
        parts = (1, 2, 5) if last - first < 1.6 else (1, 3)
        values = [part * 10.0**power for power in around for part in parts]
    else:
        values = [value for value, _ in _ticks(bottom, top, _round_size((top - bottom) / 4))]
    ticks = tuple((value, short(value)) for value in values if bottom <= value <= top)
    return Axis(bottom, top, ticks, is_log=True)


def _round_size(size: float) -> float:
    """The nearest 1, 2, 2.5 or 5 times a power of ten that is not below `size`."""
    power = 10.0 ** math.floor(math.log10(size))
    return next((part * power for part in (1.0, 2.0, 2.5, 5.0) if part * power >= size * 0.999), 10.0 * power)


def _ticks(low: float, high: float, size: float) -> tuple[Tick, ...]:
    first, last = math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9)
    values = [0.0 if number == 0 else number * size for number in range(first, last + 1)]
    largest = max(map(abs, values), default=0.0)
    if 1e-3 <= largest < 1e4 and size >= 1e-6:
        # All with as many decimals as the distance of two needs: 0, 0.0005, 0.001 and not 5e-4 between them.
        decimals = next(d for d in range(8) if abs(round(size, d) - size) < 1e-3 * size)
        return tuple((value, f"{value:,.{decimals}f}".replace("-", "−")) for value in values)
    digits = 1 + max(0, math.floor(math.log10(largest or 1.0)) - math.floor(math.log10(size)))
    # A size of 2.5 needs a digit more than one of 2 or 5.
    digits += 1 if round(size / 10 ** math.floor(math.log10(size)), 6) == 2.5 else 0
    return tuple((value, short(value, max(2, digits))) for value in values)
