"""Judges logged metrics: which of them are out of range, or show a fault, and since when."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from dumbo.plugins.watch.ranges import MARKS, RANGES, SUPERVISED

_WINDOW = 10
"""Logged losses that are averaged, because single ones are noisy."""
_FLAT_AFTER = 5 * _WINDOW
"""Logged losses after which one that has not fallen is a finding."""
_MEMORISED = 0.1
"""A loss below this has nowhere left to fall."""


class Judge:
    """Takes the metrics of one log after the other and yields each finding once, as a line for people."""

    def __init__(self, after: int, ignored: frozenset[str], pretrained: bool) -> None:
        """Ranges act after step `after`; without `pretrained` weights a loss as of guessing is a normal start."""
        self._after, self._ignored, self._pretrained = after, ignored, pretrained
        self._streaks: dict[str, int] = {}
        self._found: set[str] = set()
        self._reached: set[str] = set()
        self._losses: list[float] = []
        self._had_rate = False

    def state(self) -> dict[str, Any]:
        """What was seen so far."""
        return {
            "streaks": self._streaks,
            "found": self._found,
            "reached": self._reached,
            "losses": self._losses,
            "had_rate": self._had_rate,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._streaks, self._losses, self._had_rate = state["streaks"], state["losses"], state["had_rate"]
        self._found, self._reached = state["found"], state["reached"]

    def findings(self, metrics: Mapping[str, float], step: int, vocab_size: int | None) -> Iterator[str]:
        """What is new in `metrics`, logged after `step`; `vocab_size` is the model's, where it is known."""
        methods = {method for mark, method in MARKS.items() if mark in metrics} or {SUPERVISED}
        seen = {name: value for name, value in metrics.items() if name not in self._ignored}
        faults = list(self._not_finite(seen))
        if not faults:
            faults += [*self._no_training(seen, methods)]
            if SUPERVISED in methods and "train/loss" in seen:
                self._losses.append(seen["train/loss"])
                faults += [*self._guessing(vocab_size, step), *self._course(step)]
            faults += self._out_of_range(seen, methods, step)
        for name, words in faults:
            if name not in self._found:
                self._found.add(name)
                yield f"step {step}: {words}"

    def _lasts(self, name: str, is_so: bool, logs: int) -> bool:
        """Whether `name` has been so for `logs` logs in a row, this one included."""
        self._streaks[name] = self._streaks.get(name, 0) + 1 if is_so else 0
        return self._streaks[name] >= logs

    def _not_finite(self, metrics: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        for name in ("train/loss", "eval/loss"):
            if name in metrics and not math.isfinite(metrics[name]):
                words = f"{name} is {metrics[name]}: the weights, or a row, are spoilt"
                yield f"{name} not finite", f"{words}; try a lower learning_rate, more warmup_steps, bf16 for fp16"
        if "train/grad_norm" in metrics:
            # With fp16 a single one is how the scale of the loss is found.
            broken = not math.isfinite(metrics["train/grad_norm"])
            if self._lasts("train/grad_norm not finite", broken, logs=5):
                words = "train/grad_norm is not a number in 5 logs: no update is made, or every one is spoilt"
                yield "train/grad_norm not finite", f"{words}; try a lower learning_rate, bf16 for fp16"

    def _no_training(self, metrics: Mapping[str, float], methods: set[str]) -> Iterator[tuple[str, str]]:
        rate = metrics.get("train/learning_rate")
        if rate is not None:
            self._had_rate = self._had_rate or rate > 0
            if self._lasts("learning rate 0", not self._had_rate, logs=5):
                words = "train/learning_rate has been 0 from the start: nothing is learned"
                yield "learning rate 0", f"{words}; look at learning_rate, the schedule and its warm-up"
        norm = metrics.get("train/grad_norm")
        if norm is not None and "grpo" not in methods and self._lasts("gradient 0", norm == 0, logs=3):
            words = "train/grad_norm is exactly 0: no loss reaches the weights"
            yield "gradient 0", f"{words}; look whether any token is trained, and which weights are frozen"

    def _guessing(self, vocab_size: int | None, step: int) -> Iterator[tuple[str, str]]:
        """A loss of ln V is what a model has that knows nothing."""
        if not vocab_size or vocab_size < 2:
            return
        guess, loss = math.log(vocab_size), self._losses[-1]
        starts = self._pretrained and len(self._losses) <= 3 and abs(loss - guess) < 0.1 * guess
        if self._lasts("guessing", starts, logs=3):
            words = f"train/loss is {loss:.3g} from the start, which is guessing (ln {vocab_size} = {guess:.3g})"
            cause = "the weights are not those of a trained model, or a part of it (experts, vision) is wired wrongly"
            yield "guessing", f"{words}: {cause}; try the model on a text that it should know"
        worse = step > self._after and loss > 1.5 * guess
        if self._lasts("worse than guessing", worse, logs=3):
            words = f"train/loss is {loss:.3g}, worse than guessing (ln {vocab_size} = {guess:.3g})"
            yield "worse than guessing", f"{words}: the training has diverged; try a lower learning_rate, more warm-up"

    def _course(self, step: int) -> Iterator[tuple[str, str]]:
        """A loss that has risen, or has not fallen at all."""
        losses = self._losses
        if step <= self._after or len(losses) < 2 * _WINDOW:
            return
        now = _mean(losses[-_WINDOW:])
        best = min(_mean(losses[i : i + _WINDOW]) for i in range(len(losses) - _WINDOW))
        if now > 1.5 * best + 0.5:
            words = f"train/loss has risen from {best:.3g} to {now:.3g} (means of {_WINDOW} logs)"
            yield "risen", f"{words}: the training diverges; try a lower learning_rate, more warmup_steps"
        first = _mean(losses[:_WINDOW])
        if len(losses) == _FLAT_AFTER and now >= first and now > _MEMORISED:
            words = f"train/loss has not fallen in {_FLAT_AFTER} logs ({first:.3g}, now {now:.3g})"
            yield "flat", f"{words}: nothing is learned; try a higher learning_rate, and look at what is trained"

    def _out_of_range(self, metrics: Mapping[str, float], methods: set[str], step: int) -> Iterator[tuple[str, str]]:
        for row in RANGES:
            if row.method not in methods or row.metric not in metrics or (row.pretrained and not self._pretrained):
                continue
            value, name = metrics[row.metric], f"{row.method} {row.metric}"
            outside = not _within(value, row.alarm)
            if row.reach_by is not None:
                self._reached |= set() if outside else {name}
                alarm = step >= max(row.reach_by, self._after) and name not in self._reached
            else:
                alarm = self._lasts(name, outside and step > self._after, row.logs)
            if alarm:
                yield name, f"{row.metric} is {value:.3g} (healthy: {row.shown()}): {row.meaning}; try {row.remedy}"


def _within(value: float, bounds: tuple[float | None, float | None]) -> bool:
    low, high = bounds
    return (low is None or value >= low) and (high is None or value <= high)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
