"""Bars in several panels, some of them marked, as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dumbo.disk import written_whole
from dumbo.output.png import own_settings_folder

_COLUMNS = 2
_MARKED, _PLAIN = "#0a66b0", "#c9d1da"
_LABELLED = 40
"""With more bars only some have their label."""


@dataclass(frozen=True)
class Bar:
    """A value; one that is NaN has no bar."""

    label: str
    value: float
    is_marked: bool


@dataclass(frozen=True)
class Panel:
    """Bars that are compared with each other."""

    title: str
    bars: tuple[Bar, ...]


def write_bars(file: Path, panels: Sequence[Panel], title: str, words: tuple[str, str]) -> None:
    """Draw `panels` into `file`, a PNG; `words` say what marked bars are, and what the others."""
    with own_settings_folder():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch

        rows = math.ceil(len(panels) / _COLUMNS)
        columns = min(_COLUMNS, len(panels))
        figure = Figure(figsize=(5.5 * columns, 1.2 + 1.9 * rows), dpi=130, facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)  # its own canvas: nothing global is touched, whatever backend is chosen
        grid = figure.subplots(rows, columns, squeeze=False)
        places = [axes for line in grid for axes in line]
        for axes, panel in zip(places, panels, strict=False):
            _draw(axes, panel)
        for axes in places[len(panels) :]:
            axes.set_visible(False)
        figure.suptitle(title.replace("$", r"\$"), fontsize=11, fontweight="bold", color="#1a212c")
        keys = [Patch(color=colour, label=word) for colour, word in zip((_MARKED, _PLAIN), words, strict=True)]
        figure.legend(handles=keys, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
        with written_whole(file) as partial:
            figure.savefig(partial, format="png")


def _draw(axes: Any, panel: Panel) -> None:
    numbers = range(len(panel.bars))
    colours = [_MARKED if bar.is_marked else _PLAIN for bar in panel.bars]
    axes.bar(numbers, [0 if math.isnan(bar.value) else bar.value for bar in panel.bars], color=colours, width=0.8)
    every = math.ceil(len(panel.bars) / _LABELLED)
    shown = list(numbers)[::every]
    axes.set_xticks(shown, [panel.bars[number].label for number in shown], fontsize=7)
    axes.set_title(panel.title.replace("$", r"\$"), loc="left", fontsize=9, color="#1a212c")
    axes.grid(axis="y", color="#eceff3")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#c3c9d0")
    axes.tick_params(colors="#55606f", length=0, labelsize=7)
    axes.margins(x=0.01)
