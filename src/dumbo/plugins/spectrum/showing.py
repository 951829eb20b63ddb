"""A scan as a table, a file of numbers, and a chart of bars."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from dumbo.disk import written_whole
from dumbo.output.bars import Bar, Panel, write_bars
from dumbo.plugins.spectrum.scanning import Scanned, by_kind

_NAMED = 12
"""So many numbers of layers stand in a line."""
HEADER = ("weights", "number", "least", "most", "trained", "which")


def table(found: Sequence[Scanned], chosen: Collection[Scanned]) -> list[list[Any]]:
    """A row for each kind: how many there are, their least and most ratio, how many are trained and which."""
    names = {each.unit.weight.name for each in chosen}
    rows = []
    for kind, alike in by_kind(found).items():
        ratios = [each.ratio for each in alike if not math.isnan(each.ratio)]
        ends = [f"{end(ratios):.4g}" if ratios else "-" for end in (min, max)]
        trained = [each for each in alike if each.unit.weight.name in names]
        rows.append([_shortened(kind), len(alike), *ends, len(trained), _places(trained)])
    return rows


def _shortened(kind: str) -> str:
    return kind.removeprefix("model.")


def _places(trained: Sequence[Scanned]) -> str:
    """Layers by their numbers, those with most signal first."""
    ranked = sorted(trained, key=lambda each: each.rank)
    places = [place for each in ranked if (place := each.unit.place)]
    more = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
    return " ".join(places[:_NAMED]) + more


def write_numbers(file: Path, found: Sequence[Scanned], chosen: Collection[Scanned]) -> None:
    """Every weight's ratio (null for one of zeros), and whether it is trained, as JSON."""
    names = {each.unit.weight.name for each in chosen}
    entries = {
        each.unit.weight.name: {
            "snr": None if math.isnan(each.ratio) else each.ratio,
            "trained": each.unit.weight.name in names,
        }
        for each in found
    }
    with written_whole(file) as partial:
        partial.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")


def write_chart(file: Path, found: Sequence[Scanned], chosen: Collection[Scanned], title: str) -> None:
    """A panel for each kind that has several weights with a spectrum, and in it a bar for each of them."""
    names = {each.unit.weight.name for each in chosen}
    panels = [
        Panel(
            _shortened(kind),
            tuple(Bar(each.unit.place, each.ratio, each.unit.weight.name in names) for each in alike),
        )
        for kind, alike in by_kind(found).items()
        if len(alike) > 1 and alike[0].unit.weight.is_matrix
    ]
    if panels:
        write_bars(file, panels, title, ("trained", "left as it is"))
