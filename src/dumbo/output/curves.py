"""What is drawn of a series: few enough points that keep every spike, a smooth line through noise, and the gaps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dumbo.output.run_reading import Floats, Series

Positions = npt.NDArray[np.int64]

_FEWEST_TO_SMOOTH = 24


@dataclass(frozen=True)
class Curve:
    """A series made ready for drawing."""

    pieces: tuple[Series, ...]
    """Stretches of numbers; between them stands a value that is none."""
    smooth: tuple[Series, ...]
    """The line through the noise, broken where the pieces are; empty where there is little noise."""
    gaps: tuple[tuple[float, float], ...]
    """Step and value of some of the values that are no numbers."""
    gap_count: int
    """How many there are of them."""

    @property
    def points(self) -> Series:
        """All numbers of all pieces."""
        if not self.pieces:
            return Series(np.empty(0), np.empty(0))
        parts = self.pieces
        return Series(np.concatenate([p.steps for p in parts]), np.concatenate([p.values for p in parts]))


def curve(series: Series, points: int = 800, *, smooth: bool = True) -> Curve:
    """`series` with about `points` points at most: the lowest and highest of every bucket of neighbours."""
    good = np.isfinite(series.values)
    stretches = _stretches(good, max(1, points // 8))
    bad = np.flatnonzero(~good)
    shown = bad[np.unique(np.linspace(0, len(bad) - 1, 40).astype(int))] if len(bad) else bad
    return Curve(
        pieces=tuple(_piece(series, kept, points, int(good.sum())) for kept in stretches),
        smooth=tuple(_smooth_pieces(series.finite, stretches, points // 2)) if smooth else (),
        gaps=tuple((float(series.steps[i]), float(series.values[i])) for i in shown),
        gap_count=len(bad),
    )


def _stretches(good: npt.NDArray[np.bool_], most: int) -> list[Positions]:
    """The positions of numbers without a gap between them; with very many gaps they are all one stretch."""
    breaks = np.flatnonzero(np.diff(good.astype(np.int8))) + 1
    runs = [run for run in np.split(np.arange(len(good)), breaks) if len(run) and good[run[0]]]
    return runs if len(runs) <= most else [np.flatnonzero(good)]


def _piece(series: Series, kept: Positions, points: int, total: int) -> Series:
    kept = kept[thinned(series.values[kept], max(4, points * len(kept) // total))]
    return Series(series.steps[kept], series.values[kept])


def _smooth_pieces(series: Series, stretches: list[Positions], points: int) -> Iterator[Series]:
    line, start = smoothed(series), 0
    if line is None:
        return
    for kept in stretches:
        piece = slice(start, start + len(kept))
        start += len(kept)
        share = max(4, points * len(kept) // len(series.steps))
        yield _every(Series(series.steps[piece], line.values[piece]), share)


def thinned(values: Floats, points: int) -> Positions:
    """The positions of at most about `points` of `values`: both ends, and the extremes of each bucket."""
    length = len(values)
    if length <= points:
        return np.arange(length)
    edges = np.linspace(0, length, max(1, points // 2) + 1).astype(int)
    kept = {0, length - 1}
    for start, end in zip(edges[:-1], edges[1:], strict=True):
        if end > start:
            bucket = values[start:end]
            kept |= {int(start + bucket.argmin()), int(start + bucket.argmax())}
    return np.array(sorted(kept))


def smoothed(series: Series) -> Series | None:
    """A centred moving average, twice, over about a twentieth of the series; None where there is little noise."""
    values = series.values
    if len(values) < _FEWEST_TO_SMOOTH:
        return None
    half = max(2, len(values) // 40)
    line = _moving_average(_moving_average(values, half), half)
    spread = float(np.percentile(values, 97) - np.percentile(values, 3))
    noise = float(np.median(np.abs(values - line)))
    return Series(series.steps, line) if spread > 0 and noise > 0.003 * spread else None


def _moving_average(values: Floats, half: int) -> Floats:
    """The mean over `half` neighbours on both sides; towards the ends over fewer, as many on either side."""
    length = len(values)
    centre = np.arange(length)
    reach = np.minimum(half, np.maximum(np.minimum(centre, length - 1 - centre), half // 2))
    low, high = np.maximum(0, centre - reach), np.minimum(length, centre + reach + 1)
    # Sums of differences from the mean: of large numbers with small changes little would be left.
    middle = values.mean()
    sums = np.concatenate([[0.0], np.cumsum(values - middle)])
    means: Floats = middle + (sums[high] - sums[low]) / (high - low)
    return means


def _every(series: Series, points: int) -> Series:
    if len(series.steps) <= points:
        return series
    kept = np.unique(np.linspace(0, len(series.steps) - 1, points).astype(int))
    return Series(series.steps[kept], series.values[kept])
