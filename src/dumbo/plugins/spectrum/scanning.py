"""Measures the signal in all weights of a model, and keeps what was measured for the next time."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from dumbo.data.store import cache_folder
from dumbo.errors import Problem, RunError
from dumbo.merging.numbers import Array
from dumbo.plugins.spectrum.signal import signal_to_noise, singular_values
from dumbo.plugins.spectrum.weights import Unit

_VERSION = 2
_OFTEN = 30.0
"""Seconds after which what was measured is written down."""


@dataclass(frozen=True)
class Scanned:
    """A unit and its signal-to-noise ratio; NaN for one of zeros."""

    unit: Unit
    ratio: float

    @property
    def rank(self) -> tuple[bool, float]:
        """Sorts those with most signal first, and those without a ratio last."""
        return math.isnan(self.ratio), 0.0 if math.isnan(self.ratio) else -self.ratio


class RatioCache:
    """Ratios by what the matrices hold, in a file per model, so that a matrix that has changed is measured again."""

    def __init__(self, model: str, folder: Path | None = None) -> None:
        """`model`, a folder however it is written or a hub name, gives the file its name; the ratios in it hold for
        whatever has the same content."""
        path = Path(model).expanduser()
        model = str(path.resolve()) if path.is_dir() else model
        name = re.sub(r"[^\w.@-]+", "_", model).strip("_.")[-100:]
        self.file = (folder or cache_folder()) / "spectrum" / f"{name}-v{_VERSION}.json"
        self._ratios = self._read()
        self._written = time.monotonic()
        self._is_new = False

    def _read(self) -> dict[str, float]:
        try:
            kept = json.loads(self.file.read_text(encoding="utf-8"))["ratios"]
            return {str(key): math.nan if value is None else float(value) for key, value in kept.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def ratio(self, matrix: Array, measure: Callable[[Array], float]) -> tuple[float, bool]:
        """The matrix's ratio, and whether it had to be measured."""
        digest = hashlib.blake2b(np.ascontiguousarray(matrix).data, digest_size=16)
        key = f"{'x'.join(map(str, matrix.shape))}-{digest.hexdigest()}"
        if key in self._ratios:
            return self._ratios[key], False
        self._ratios[key] = measure(matrix)
        self._is_new = True
        if time.monotonic() - self._written > _OFTEN:
            self.write()
        return self._ratios[key], True

    def write(self) -> str | None:
        """Write down what is new, whole or not at all; return why that was not possible."""
        self._written = time.monotonic()
        if not self._is_new:
            return None
        partial = self.file.with_name(f"{self.file.name}.{os.getpid()}")
        ratios = {**self._read(), **self._ratios}  # another process may have measured, too
        text = json.dumps({"ratios": {key: None if math.isnan(value) else value for key, value in ratios.items()}})
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(text, encoding="utf-8")
            partial.replace(self.file)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            return f"{self.file} cannot be written: {error.strerror or error}"
        self._is_new = False
        return None


def scan(
    units: Sequence[Unit],
    cache: RatioCache,
    say: Callable[[str], None],
    track: Callable[[Iterable[Unit]], Iterable[Unit]] = iter,
) -> list[Scanned]:
    """The ratio of every unit, in their order; of one with experts the mean of theirs.

    Raises:
        RunError: a weight that is not finite.
    """
    began, measured, found = time.monotonic(), 0, []
    for unit in track(units):
        ratios = []
        for part in range(unit.weight.parts):
            ratio, is_new = cache.ratio(unit.weight.matrix(part), partial(_measure, unit.weight.name))
            measured += is_new
            ratios += [] if math.isnan(ratio) else [ratio]
        found.append(Scanned(unit, sum(ratios) / len(ratios) if ratios else math.nan))
    failure = cache.write()
    if failure is not None:
        say(f"spectrum: what was measured is not kept: {failure}")
    total = sum(unit.weight.parts for unit in units)
    took = f"{measured} of them measured in {time.monotonic() - began:.1f} s" if measured else "all known from before"
    say(f"spectrum: {total} matrices and vectors, {took}")
    return found


def _measure(name: str, matrix: Array) -> float:
    if not np.isfinite(matrix).all():
        message = f"spectrum: {name} has values that are not finite"
        raise RunError(str(Problem(message, hints=("the model is damaged; copy or download it again",))))
    return signal_to_noise(singular_values(matrix), *matrix.shape)


def by_kind(found: Sequence[Scanned]) -> Mapping[str, list[Scanned]]:
    """Those of one kind together, in the order of the model."""
    kinds: dict[str, list[Scanned]] = {}
    for each in found:
        kinds.setdefault(each.unit.kind, []).append(each)
    return kinds


def choose(found: Sequence[Scanned], fraction: float) -> list[Scanned]:
    """The top `fraction` of each kind, rounded down: most signal first, NaN last, of equals the first in the model."""
    chosen = []
    for alike in by_kind(found).values():
        count = int(len(alike) * fraction + 1e-9)
        chosen += sorted(alike, key=lambda each: each.rank)[:count]
    return chosen
