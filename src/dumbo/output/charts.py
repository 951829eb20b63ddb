"""Curves as SVG that needs no script: paths in a box that stretches, labels and marks that do not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from dumbo.output.axes import Axis, log_axis, step_axis, value_axis
from dumbo.output.curves import Curve, curve
from dumbo.output.markup import Html, joined, text
from dumbo.output.numerals import count, is_share, measured, percent, short
from dumbo.output.run_reading import Series

COLOURS = 8
DASHES = 4
"""How many of each the style sheet has."""
_BOX = 1000
"""The inner drawing is so many units wide and high, and stretched to its place."""
_FEW = 40
"""A curve with no more points shows them as dots."""


@dataclass(frozen=True)
class Line:
    """A named series and how it looks."""

    label: str
    series: Series
    colour: int = 0
    dash: int = 0
    smooth: bool = True


@dataclass(frozen=True)
class Chart:
    """A picture with one or more lines over the steps of a run."""

    metric: str
    title: str
    lines: Sequence[Line]
    is_wide: bool = False
    from_zero: bool = False
    note: Html = Html("")
    span: tuple[float, float] | None = None
    """First and last step of all charts of a page; by default those of the lines."""
    marks: Sequence[tuple[float, str]] = ()
    """Steps with a word each, such as the ends of epochs."""


@dataclass(frozen=True)
class _Drawn:
    line: Line
    curve: Curve

    @property
    def style(self) -> str:
        return f"c{self.line.colour % COLOURS} d{self.line.dash % DASHES}"


def draw(chart: Chart, points: int = 800) -> Html:
    """The chart as a figure: title, legend, picture, a line for the values under the pointer, and a note."""
    drawn = [_Drawn(line, curve(line.series, points, smooth=line.smooth)) for line in chart.lines]
    values = [float(v) for d in drawn for v in (*d.curve.points.values,)]
    steps = chart.span or [float(s) for d in drawn for s in d.line.series.steps[[0, -1]]]
    across = step_axis(min(steps), max(steps))
    pictures = [_empty()]
    if values:
        linear = value_axis(min(values), max(values), 5 if chart.is_wide else 4, from_zero=chart.from_zero)
        pictures = [_picture(chart, drawn, across, linear, "")]
        positive = [value for value in values if value > 0]
        if len(positive) > 0.9 * len(values) and max(positive) > 2 * min(positive):
            log = log_axis(min(positive), max(positive))
            pictures = [_picture(chart, drawn, across, linear, "linear"), _picture(chart, drawn, across, log, "log")]
    wide = " wide" if chart.is_wide else ""
    return Html(
        f'<figure class="chart{wide}"><figcaption><h3>{text(chart.title)}</h3>{_legend(drawn)}</figcaption>\n'
        f'{joined(pictures)}\n<p class="read-out" aria-hidden="true"></p>\n<p class="note">{chart.note}</p>'
        f"{_data(chart, drawn)}</figure>"
    )


def _empty() -> Html:
    return Html('<p class="soft">No value is a number.</p>')


def _legend(drawn: Sequence[_Drawn]) -> Html:
    if len(drawn) < 2:
        return Html("")
    items = "".join(
        f'<li class="{d.style}"><svg width="26" height="10" aria-hidden="true"><path class="key" d="M1 5H25"/>'
        f"{_key_dot(d)}</svg><span>{text(d.line.label)}</span></li>"
        for d in drawn
    )
    return Html(f'<ul class="legend">{items}</ul>')


def _key_dot(drawn: _Drawn) -> str:
    return '<circle class="dot" cx="13" cy="5" r="3"/>' if len(drawn.curve.points.steps) <= _FEW else ""


def _picture(chart: Chart, drawn: Sequence[_Drawn], across: Axis, up: Axis, kind: str) -> Html:
    ends = f'data-x="{across.low:.12g} {across.high:.12g}" data-y="{up.low:.12g} {up.high:.12g}"'
    ends += f' data-log="{int(up.is_log)}"'
    inside = "".join(_paths(d, across, up) for d in drawn)
    marks = "".join(_dots(d, across, up) + _gap_marks(d, across) for d in drawn)
    return Html(
        f'<div class="plot {kind}"><svg role="img" aria-label="{_spoken(chart, drawn)}" {ends}>'
        f"{_grid(across, up, is_share(chart.metric))}{_marks(chart, across)}"
        f'<svg viewBox="0 0 {_BOX} {_BOX}" preserveAspectRatio="none" width="100%" height="100%">{inside}</svg>'
        f'{marks}<g class="pointer"></g></svg></div>'
    )


def _spoken(chart: Chart, drawn: Sequence[_Drawn]) -> Html:
    """What the picture shows, for those who do not see it."""
    parts = []
    for d in drawn:
        points = d.curve.points
        if len(points.steps):
            first, last = (measured(chart.metric, float(points.values[i])) for i in (0, -1))
            parts.append(f"{d.line.label}: from {first} at step {count(float(points.steps[0]))} "
                         f"to {last} at step {count(float(points.steps[-1]))}")  # fmt: skip
    return text(f"{chart.title} over steps. {'; '.join(parts)}")


def _grid(across: Axis, up: Axis, shares: bool) -> str:
    parts = []
    for value, label in up.ticks if not shares else [(value, percent(value)) for value, _ in up.ticks]:
        y = _percent(1 - up.place(value))
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick" x="0" dx="-8" y="{y}" dy="0.35em" text-anchor="end">{label}</text>')
    for value, label in across.ticks:
        x = _percent(across.place(value))
        parts.append(f'<text class="tick" x="{x}" y="100%" dy="1.5em" text-anchor="middle">{label}</text>')
    parts.append('<line class="base" x1="0" x2="100%" y1="100%" y2="100%"/>')
    return "".join(parts)


def _marks(chart: Chart, across: Axis) -> str:
    shown = [(across.place(step), word) for step, word in chart.marks if across.low < step <= across.high]
    return "".join(
        f'<line class="mark" x1="{_percent(x)}" x2="{_percent(x)}" y1="0" y2="100%"/>'
        f'<text class="mark-label" x="{_percent(x)}" dx="-4" y="10" text-anchor="end">{text(word)}</text>'
        for x, word in shown
    )


def _paths(drawn: _Drawn, across: Axis, up: Axis) -> str:
    kind = "raw" if drawn.curve.smooth else "only"
    raw = "".join(_path(piece, across, up) for piece in drawn.curve.pieces)
    paths = f'<path class="{kind} {drawn.style}" d="{raw}"/>' if raw else ""
    if drawn.curve.smooth:
        smooth = "".join(_path(piece, across, up) for piece in drawn.curve.smooth)
        paths += f'<path class="smooth {drawn.style}" d="{smooth}"/>'
    return paths


def _path(series: Series, across: Axis, up: Axis) -> str:
    places = [
        f"{_BOX * across.place(step):.5g} {_BOX * (1 - up.place(value)):.4g}"
        for step, value in zip(series.steps.tolist(), series.values.tolist(), strict=True)
        if not up.is_log or value > 0
    ]
    # A single point is drawn as a line of no length, whose round ends make a dot.
    return "M" + "L".join(places if len(places) != 1 else places * 2) if places else ""


def _dots(drawn: _Drawn, across: Axis, up: Axis) -> str:
    points = drawn.curve.points
    if len(points.steps) > _FEW:
        return ""
    places = [
        (_percent(across.place(step)), _percent(1 - up.place(value)))
        for step, value in zip(points.steps.tolist(), points.values.tolist(), strict=True)
        if not up.is_log or value > 0
    ]
    return "".join(f'<circle class="dot {drawn.style}" cx="{x}" cy="{y}" r="3"/>' for x, y in places)


def _gap_marks(drawn: _Drawn, across: Axis) -> str:
    """A cross on the base line for what is no number."""
    return "".join(
        f'<text class="gap {drawn.style}" x="{_percent(across.place(step))}" y="100%" dy="-4" text-anchor="middle">×'
        f"<title>{text(drawn.line.label)}: {short(value)} at step {count(step)}</title></text>"
        for step, value in drawn.curve.gaps
    )


def _data(chart: Chart, drawn: Sequence[_Drawn]) -> Html:
    """The points for the script that reads values out under the pointer."""
    lines = [
        {
            "label": d.line.label,
            "style": d.style,
            "x": [round(step) for step in d.curve.points.steps.tolist()],
            "y": [float(f"{value:.4g}") for value in d.curve.points.values.tolist()],
        }
        for d in drawn
    ]
    packed = json.dumps(lines, separators=(",", ":")).replace("<", "\\u003c")
    return Html(f'<script type="application/json">{packed}</script>')


def _percent(place: float) -> str:
    return f"{100 * place:.4g}%"
