"""Metrics: numbers by path (`train/loss`) that the run hands to every collector, on the first rank only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

_LOWER = ("loss", "perplexity", "error", "error_rate", "wer", "cer")
_HIGHER = ("_per_second", "exact_match", "accuracy", "accuracies", "reward", "rewards", "bleu", "f1")


def logged_path(name: str) -> str:
    """The path of a metric that Transformers logs as `loss` or `eval_loss`: `train/loss`, `eval/loss`."""
    return name.replace("_", "/", 1) if name.startswith("eval_") else f"train/{name}"


def evaluation_path(name: str) -> str:
    """The path of a metric of evaluations, which may be written `loss`, `eval_loss` or `eval/loss`."""
    return name if name.startswith("eval/") else "eval/" + name.removeprefix("eval_")


def higher_is_better(metric: str) -> bool | None:
    """Which way is better, where the name of a metric tells."""
    name = metric.rpartition("/")[2]
    if name.endswith(_LOWER):
        return False
    return True if name.endswith(_HIGHER) or name.startswith("rouge") else None


@dataclass(frozen=True)
class RunInfo:
    """What a collector may want to know when the run opens."""

    name: str
    """The name of the run's folder."""
    output_dir: Path
    """The run's folder; a collector may write into it."""
    config: Mapping[str, Any]
    """The resolved configuration with secrets left out, ready to be logged."""
    resumed: Mapping[str, Any] | None = None
    """What this collector's `state` returned when the checkpoint was written from which the run goes on."""
    step: int = 0
    """The optimizer step after which it goes on."""


class MetricsCollector:
    """Receives the run's metrics. A subclass needs `log_metrics` alone.

    Collectors live on the first rank only. `open` is called before the model loads: what it raises stops the run. What
    `log_metrics` or `close` raise is reported once, and the collector is dropped; the training goes on.
    """

    def open(self, run: RunInfo) -> None:
        """The run is about to start."""

    def state(self) -> Mapping[str, Any]:
        """What the collector needs to go on with the same run after a restart, for JSON: its id, for example."""
        return {}

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        """Take `metrics` (path -> value, e.g. `{"train/loss": 1.2}`), measured after optimizer step `step`."""
        raise NotImplementedError

    def close(self, outcome: str) -> None:
        """The run has ended: `outcome` is `finished`, `interrupted` or `failed`."""


class Metrics:
    """Hands metrics to all collectors, and drops one that fails without stopping the training."""

    def __init__(self, collectors: Sequence[tuple[str, MetricsCollector]]) -> None:
        """`collectors` are pairs of the name to blame and the collector; empty on every rank but the first."""
        self._collectors = list(collectors)

    def open(self, run: RunInfo, states: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Open every collector; the first that cannot be opened ends the run with its name in the message. `states`:
        of a run that goes on, what `states` returned, by the names of collectors."""
        from dumbo.blame import describe
        from dumbo.errors import DumboError, PluginError

        for name, collector in self._collectors:
            try:
                collector.open(replace(run, resumed=states.get(name)))
            except DumboError:
                raise
            except (Exception, SystemExit) as error:
                message = f"the metrics collector of '{name}' cannot be opened: {describe(error, type(collector))}"
                raise PluginError(message) from error

    def states(self) -> dict[str, Any]:
        """What every collector needs to go on, by its name."""
        found: dict[str, Any] = {}
        for name, collector in list(self._collectors):
            self._call_one((name, collector), "state", lambda each, name=name: found.update({name: dict(each.state())}))
        return found

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Hand a copy of `metrics` to every collector that is still there."""
        self._call("log_metrics", lambda collector: collector.log_metrics(dict(metrics), step))

    def close(self, outcome: str) -> None:
        """Close every collector; afterwards there are none."""
        self._call("close", lambda collector: collector.close(outcome))
        self._collectors = []

    def _call(self, hook: str, call: Any) -> None:
        for entry in list(self._collectors):
            self._call_one(entry, hook, call)

    def _call_one(self, entry: tuple[str, MetricsCollector], hook: str, call: Any) -> None:
        try:
            call(entry[1])
        except (Exception, SystemExit) as error:
            from dumbo.blame import describe
            from dumbo.redact import redact_text
            from dumbo.stdio import complain

            self._collectors.remove(entry)
            reason = redact_text(describe(error, type(entry[1])))
            complain(f"dumbo: '{entry[0]}' failed in {hook} and gets no more metrics: {reason}")
