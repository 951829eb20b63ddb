"""The loss curve as a picture for places that show no pages."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dumbo.disk import written_whole
from dumbo.output.curves import curve
from dumbo.output.numerals import short
from dumbo.output.run_reading import RunRecord

_COLOURS = ("#0a66b0", "#c44e00", "#007a58", "#a8437c", "#8f6b00", "#2b86bd", "#6a51a3", "#4a5565")
_DASHES = ("solid", "dashed", "dotted", "dashdot")
_METRICS = ("train/loss", "eval/loss")


def write_png(runs: Sequence[RunRecord], labels: Sequence[str], file: Path) -> Path | None:
    """Draw training and evaluation loss of `runs` into `file`; None where there is no loss to draw."""
    if not any(name in run.metrics and run.metrics[name].last is not None for run in runs for name in _METRICS):
        return None
    with own_settings_folder():
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 4.8), dpi=150, facecolor="white")
        FigureCanvasAgg(figure)  # its own canvas: nothing global is touched, whatever backend is chosen
        axes = figure.subplots()
        figure.subplots_adjust(left=0.08, right=0.985, top=0.93, bottom=0.11)
        for index, (run, label) in enumerate(zip(runs, labels, strict=True)):
            _draw_run(axes, run, label if len(runs) > 1 else "", index)
        _finish(axes, runs)
        with written_whole(file) as partial, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # names in scripts that the font lacks: a box is drawn
            # At zlib's own level 6 the compression takes half of the time of a picture, for a quarter of its size.
            figure.savefig(partial, format="png", pil_kwargs={"compress_level": 3})
    return file


def _draw_run(axes: Any, run: RunRecord, label: str, index: int) -> None:
    for name in _METRICS:
        if name not in run.metrics or run.metrics[name].last is None:
            continue
        is_eval = name.startswith("eval/")
        drawn = curve(run.metrics[name], 1500)
        colour = _COLOURS[index % 8] if label else _COLOURS[int(is_eval)]
        kind = "evaluation" if is_eval else "training"
        words = f"{label}, {kind}" if label else kind
        style: dict[str, Any] = {"color": colour, "linestyle": _DASHES[(index + index // 8) % 4]}
        if is_eval or len(drawn.points.steps) <= 40:
            style |= {
                "marker": "o" if is_eval else ".",
                "markersize": 4,
                "markerfacecolor": "white" if is_eval else colour,
            }
        if is_eval and label:
            style |= {"alpha": 0.6, "linewidth": 1.0}
        for piece in drawn.pieces if drawn.smooth else ():
            axes.plot(piece.steps, piece.values, color=colour, linewidth=0.7, alpha=0.3)
        for number, piece in enumerate(drawn.smooth or drawn.pieces):
            named = {} if number else {"label": _plain(words)}
            axes.plot(piece.steps, piece.values, **named, **({"linewidth": 1.7} | style))


def _finish(axes: Any, runs: Sequence[RunRecord]) -> None:
    axes.set_xlabel("step", color="#55606f")
    axes.set_ylabel("loss", color="#55606f")
    if len(runs) == 1:
        axes.set_title(_plain(runs[0].name), loc="left", fontsize=11, fontweight="bold", color="#1a212c")
    axes.grid(axis="y", color="#eceff3")
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#c3c9d0")
    axes.tick_params(colors="#55606f", length=0)
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    axes.margins(x=0.01)
    axes.legend(frameon=False, fontsize=9)


def _plain(words: str) -> str:
    """A label that is neither mathematics (`$`) nor hidden from the legend (a leading `_`)."""
    plain = "".join(c if c.isprintable() else "?" for c in words[:60]).replace("$", r"\$")
    return f" {plain}" if plain.startswith("_") else plain


@contextmanager
def own_settings_folder() -> Iterator[None]:
    """A folder for Matplotlib's font list where the home cannot be written to: it would warn, and search each time."""
    if "MPLCONFIGDIR" in os.environ or all(map(_is_writable, (".config", ".cache"))):
        yield
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ["MPLCONFIGDIR"] = folder
        try:
            yield
        finally:
            del os.environ["MPLCONFIGDIR"]


def _is_writable(name: str) -> bool:
    """Whether this folder of the home, or the one that it would be made in, can be written to."""
    try:
        folder = Path(os.environ.get(f"XDG_{name[1:].upper()}_HOME") or Path.home() / name)
    except RuntimeError:  # a user without a home
        return False
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return os.access(folder, os.W_OK)
