"""The curves of runs: which metrics share a chart, in which order, with what said about them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from dumbo.metrics import higher_is_better
from dumbo.output.charts import Chart, Line, draw
from dumbo.output.markup import Html, joined, section, text
from dumbo.output.numerals import count, measured, unit_of, without_unit
from dumbo.output.run_reading import RunRecord, Series

_MOST_CHARTS = 80
_POINTS = 24_000
"""Points of all charts together; each then takes about 60 bytes."""
_TITLES = (
    ("loss", "Loss"),
    ("learning_rate", "Learning rate"),
    ("grad_norm", "Gradient norm"),
    ("tokens_per_second", "Tokens per second"),
)
"""What comes first, and what it is called."""
_KINDS = MappingProxyType({"train": "training", "eval": "evaluation"})
_NO_CHART = frozenset({"train/epoch"})
_STEADY = frozenset({"learning_rate", "epoch"})
"""Metrics without noise: nothing is smoothed."""
_CONTROLS = (
    '<div class="controls"><label><input type="checkbox" id="smooth" checked> Smooth noisy curves</label>'
    '<label><input type="checkbox" id="log"> Logarithmic scale</label></div>'
)


def curve_section(run: RunRecord) -> Html:
    """All metrics of one run."""
    groups = grouped([run.metrics])
    parts = sum(len(names) for names in groups.values())
    points = max(100, min(800, _POINTS // max(1, parts)))
    span = _span([run])
    charts = [replace(_chart(run, key, names), span=span) for key, names in list(groups.items())[:_MOST_CHARTS]]
    lead = "Thin lines are the values as they were logged, thick ones their moving average."
    return _section([draw(chart, points) for chart in charts], lead, len(groups))


def comparison_section(runs: Sequence[RunRecord], labels: Sequence[str]) -> Html:
    """The metrics of several runs, a chart for each metric, the runs over each other."""
    names = [name for group in grouped([run.metrics for run in runs]).values() for name in group]
    points = max(60, min(400, _POINTS // max(1, len(names) * len(runs))))
    charts = []
    for name in names[:_MOST_CHARTS]:
        lines = [
            Line(label, run.metrics[name], colour=i, dash=i + i // 8, smooth=_last_part(name) not in _STEADY)
            for i, (run, label) in enumerate(zip(runs, labels, strict=True))
            if name in run.metrics
        ]
        wide = name in ("train/loss", "eval/loss")
        kind = (
            _KINDS.get(name.partition("/")[0], "")
            if name.partition("/")[2] not in ("learning_rate", "grad_norm")
            else ""
        )
        title = f"{title_of(name)} ({kind})" if kind else title_of(name)
        charts.append(Chart(name, title, lines, wide, _starts_at_zero(name), span=_span(runs)))
    lead = "Every run has its colour and its kind of line."
    return _section([draw(chart, points) for chart in charts], lead, len(names))


def _span(runs: Sequence[RunRecord]) -> tuple[float, float]:
    ends = [float(step) for run in runs for series in run.metrics.values() for step in series.steps[[0, -1]]]
    return min(ends, default=0.0), max(ends, default=1.0)


def _section(charts: Sequence[Html], lead: str, wanted: int) -> Html:
    if not charts:
        return Html("")
    small = sum('class="chart"' in chart for chart in charts)
    columns = 2 if small in (1, 2, 4) else 3
    left_out = wanted - len(charts)
    more = f'<p class="note">{left_out} more metrics are in metrics.jsonl.</p>' if left_out > 0 else ""
    return section(
        "curves",
        "Curves",
        [_CONTROLS, f'<div class="charts" style="--columns: {columns}">{joined(charts)}</div>', more],
        lead,
    )


def grouped(metrics: Sequence[Mapping[str, Series]]) -> dict[str, list[str]]:
    """The metrics by chart: `train/x` and `eval/x` share one, known ones come first."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for mapping in metrics for name in mapping):
        if name in _NO_CHART:
            continue
        kind, _, rest = name.partition("/")
        groups.setdefault(rest if kind in ("train", "eval") and rest else name, []).append(name)
    known = [last for last, _ in _TITLES]

    def order(key: str) -> tuple[int, bool, str]:
        last = _last_part(key)
        rank = known.index(last) if last in known and key in (last, f"perf/{last}") else len(known)
        return rank, not any(name.startswith("eval/") for name in groups[key]), key

    return {key: sorted(groups[key], reverse=True) for key in sorted(groups, key=order)}


def title_of(name: str) -> str:
    """A metric in words: `eval/exact_match` is `Exact match`."""
    kind, _, rest = name.partition("/")
    rest = rest if kind in ("train", "eval", "perf") and rest else name
    unit = unit_of(rest) if without_unit(rest) != rest else ""
    words = dict(_TITLES).get(rest) or without_unit(rest).replace("/", " / ").replace("_", " ").strip() or name
    return words[:1].upper() + words[1:] + (f" ({unit})" if unit else "")


def _last_part(name: str) -> str:
    return name.rpartition("/")[2]


def _starts_at_zero(name: str) -> bool:
    return name.startswith("perf/")


def _chart(run: RunRecord, key: str, names: Sequence[str]) -> Chart:
    lines = [
        Line(
            _KINDS.get(name.partition("/")[0], name),
            run.metrics[name],
            colour=1 if name.startswith("eval/") else 0,
            smooth=_last_part(name) not in _STEADY,
        )
        for name in names
    ]
    title = title_of(key)
    if len(names) == 1 and names[0].partition("/")[0] in ("train", "eval") and key not in dict(_TITLES):
        title += " (evaluation)" if names[0].startswith("eval/") else ""
    note = Html(
        "<br>".join(note for name in names for note in [_note(name, run.metrics[name], len(names) > 1)] if note)
    )
    marks = _epochs(run.metrics.get("train/epoch")) if key == "loss" else ()
    return Chart(names[0], title, lines, key == "loss", all(map(_starts_at_zero, names)), note, marks=marks)


def _note(name: str, series: Series, several: bool) -> Html:
    """The last and the best value, and how many are no numbers."""
    parts = [] if series.last is None else [f"last {measured(name, series.last)}"]
    direction = higher_is_better(name)
    if _last_part(name) in _STEADY and (peak := series.best(highest=True)) is not None:
        parts.insert(0, f"highest {measured(name, peak[0])}")
    elif series.last is not None and len(series.steps) > 1 and float(np.ptp(series.finite.values)) == 0:
        parts = [f"always {measured(name, series.last)}"]
    elif len(series.steps) > 1:
        words = ("highest",) if direction else ("lowest",) if direction is False else ("lowest", "highest")
        for word in words:
            best = series.best(highest=word == "highest")
            if best is not None:
                parts.append(f"{word} {measured(name, best[0])} at step {count(best[1])}")
    broken = int((~np.isfinite(series.values)).sum())
    if broken:
        parts.append(f"{count(broken)} {'value is' if broken == 1 else 'values are'} no number (×)")
    kind = _KINDS.get(name.partition("/")[0], "").capitalize()
    sentence = ", ".join(parts)
    return text(f"{kind}: {sentence}" if several and kind else sentence[:1].upper() + sentence[1:])


def _epochs(epoch: Series | None) -> list[tuple[float, str]]:
    """The steps at which whole epochs were done, where they are few enough to be told apart."""
    if epoch is None:
        return []
    done = epoch.finite
    if len(done.steps) < 2 or bool((np.diff(done.values) < 0).any()):
        return []
    last = math.floor(done.values[-1] + 1e-6)
    if not 1 <= last <= 12:
        return []
    return [(float(np.interp(n - 1e-9, done.values, done.steps)), f"epoch {n}") for n in range(1, last + 1)]
