"""The picture of `sft.py`: bars of each side in each case, with every measured value as a dot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

COLOURS = {
    "dumbo": "#1f6f8b",
    "bare loop": "#9aa5ab",
    "trl": "#c9a227",
    "llamafactory": "#7a9e7e",
    "axolotl": "#b5651d",
}
TITLES = {
    "tokens_per_second": "tokens per second",
    "tokens_per_cpu_second": "tokens per processor second",
    "memory_mib": "most memory of the process, MiB",
    "gpu_memory_mib": "most memory of the GPU, MiB",
    "utilisation": "share of the GPU's speed in matrix products",
    "first_step_seconds": "seconds from the command to the first step",
}


def plot(report: Mapping[str, Any], file: Path) -> None:
    """Draw what was measured of `TITLES`."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    medians = report["median"]
    cases = list(medians)
    sides = list(dict.fromkeys(side for of in medians.values() for side in of))
    known = {name for of in medians.values() for values in of.values() for name in values}
    shown = [name for name in TITLES if name in known]
    figure, axes = plt.subplots(-(-len(shown) // 2), 2, figsize=(12, 7.5), layout="constrained", squeeze=False)
    width = 0.85 / len(sides)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, name in zip(axes.flat, shown, strict=False):
        for number, side in enumerate(sides):
            place = [at + (number - (len(sides) - 1) / 2) * width for at in range(len(cases))]
            heights = [medians[case].get(side, {}).get(name, 0) for case in cases]
            bars = axis.bar(place, heights, 0.9 * width, color=COLOURS.get(side, "#777777"), label=side)
            small = max(heights) < 100
            axis.bar_label(bars, fmt="{:.2f}" if small else "{:,.0f}", fontsize=6, padding=2)
            for value in report["values"]:
                if value["side"] == side and name in value:
                    axis.plot(place[cases.index(value["case"])], value[name], ".", color="black", markersize=3)
        axis.set_title(TITLES[name], fontsize=10)
        axis.set_xticks(range(len(cases)), cases, fontsize=9)
        axis.margins(y=0.12)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(sides), frameon=False
    )
    figure.suptitle(f"Training side by side, {report['machine']}", fontsize=11)
    figure.savefig(file, dpi=110)
