"""Read back what a run left in its folder; files that are missing, cut off or strange give less, and no error."""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from dumbo.redact import redact
from dumbo.run_folder import models_of

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Series:
    """The values of one metric, by ascending step."""

    steps: Floats
    values: Floats
    """May hold NaN and infinities."""

    @property
    def finite(self) -> Series:
        """The same without the values that are no numbers."""
        good = np.isfinite(self.values)
        return Series(self.steps[good], self.values[good])

    @property
    def last(self) -> float | None:
        """The last value that is a number."""
        values = self.finite.values
        return float(values[-1]) if len(values) else None

    @property
    def at_the_end(self) -> float | None:
        """What it has come to: the mean of its last twentieth, as a single step says little; None without a number."""
        values = self.finite.values
        return float(values[-max(1, len(values) // 20) :].mean()) if len(values) else None

    def best(self, *, highest: bool = False) -> tuple[float, float] | None:
        """The lowest (or highest) value and its step."""
        good = self.finite
        if not len(good.values):
            return None
        index = int(good.values.argmax() if highest else good.values.argmin())
        return float(good.values[index]), float(good.steps[index])


@dataclass(frozen=True)
class Sample:
    """A text that the run's model wrote."""

    step: int
    prompt: str
    output: str
    reference: str | None = None

    @property
    def is_right(self) -> bool | None:
        """Whether it equals the reference, but for space around; None where there is none."""
        return None if self.reference is None else self.output.strip() == self.reference.strip()


@dataclass(frozen=True)
class RunRecord:
    """All that is known of a run."""

    folder: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    """The resolved configuration as plain values; empty where it cannot be read."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Series] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.name or self.folder.resolve().name or str(self.folder)

    @property
    def last_step(self) -> int:
        """The last step of which anything is known."""
        logged = [int(series.steps[-1]) for series in self.metrics.values()]
        said = self.summary.get("steps")
        return max([*logged, int(said) if is_number(said) else 0])

    @property
    def outcome(self) -> str:
        """`finished`, `interrupted`, `failed`, `running`, or empty where nothing says so."""
        return str(self.summary.get("outcome") or "")

    @property
    def model(self) -> Path | None:
        """The folder of the model that it left, else of its best or newest checkpoint; None where there is none."""
        found = [self.folder / "model", self.folder / "checkpoints" / "best", *reversed(models_of(self.folder))]
        return next((folder for folder in found if folder.is_dir()), None)


def read_run(folder: Path) -> RunRecord:
    """Everything in `folder` that can be read, with secrets left out."""
    return RunRecord(
        folder,
        config=_read_config(folder / "run.yaml"),
        summary=_read_summary(folder / "summary.json"),
        metrics=_read_metrics(folder / "metrics.jsonl"),
        samples=tuple(_read_samples(folder / "samples.jsonl")),
    )


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether `value` is a number that can be drawn or counted: no truth value, NaN or infinity."""
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(abs(value) < 1e300)


def _read_config(file: Path) -> dict[str, Any]:
    from dumbo.config.yaml_tree import parse_yaml

    try:
        tree = parse_yaml(file.read_text(encoding="utf-8", errors="replace"), file.name).value
    except (OSError, ValueError):
        return {}
    return redact(tree) if isinstance(tree, dict) else {}


def _read_summary(file: Path) -> dict[str, Any]:
    try:
        summary = json.loads(file.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError, RecursionError):
        return {}
    return redact(summary) if isinstance(summary, dict) else {}


def _read_metrics(file: Path) -> dict[str, Series]:
    found: dict[str, tuple[array[float], array[float]]] = {}
    for row in _lines(file):
        step = row.pop("step", None)
        if not is_number(step):
            continue
        for name, value in row.items():
            if type(value) is not float:
                value = _as_float(value)
                if value is None:
                    continue
            if name not in found:
                found[name] = array("d"), array("d")
            steps, values = found[name]
            steps.append(step)
            values.append(value)
    return {name: _in_order(np.array(steps), np.array(values)) for name, (steps, values) in found.items()}


def _as_float(value: Any) -> float | None:
    """A metric's value as a number; None for what is none, such as a text."""
    if value is None:
        return math.nan  # what writers of strict JSON make of NaN
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _in_order(steps: Floats, values: Floats) -> Series:
    """Ascending steps; of one that was logged again the later value counts."""
    if len(steps) > 1 and not bool((np.diff(steps) > 0).all()):
        order = np.argsort(steps, kind="stable")
        steps, values = steps[order], values[order]
        kept = np.append(steps[1:] != steps[:-1], True)
        steps, values = steps[kept], values[kept]
    return Series(steps, values)


def _read_samples(file: Path) -> Iterator[Sample]:
    for row in _lines(file):
        # A text with masked tokens is a prompt, what was filled in the output, and how it was the reference.
        names = ("masked", "generated", "original") if "masked" in row else ("prompt", "output", "reference")
        step, (prompt, output, reference) = row.get("step"), (row.get(name) for name in names)
        if is_number(step) and prompt is not None and output is not None:
            yield Sample(int(step), _as_text(prompt), _as_text(output), None if reference is None else str(reference))


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file, a line each; a run that is killed leaves its last line cut off."""
    try:
        with file.open(encoding="utf-8", errors="replace", newline="\n") as text:
            for line in text:
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(row, dict):
                    yield row
    except OSError:
        return
