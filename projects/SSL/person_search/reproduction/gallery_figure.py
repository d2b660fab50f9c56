"""Figure 6: mAP against the size of the gallery, several trainings compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from .drawing import STYLES, save_both, tidy


def gallery_figure(runs: Mapping[str, Sequence[Mapping[int, float]]], title: str) -> Figure:
    """A line for each kind of training: mean mAP over its seeds at each gallery size, with the sample deviation.

    Args:
        runs: title -> for each seed, size -> mAP in percent; all of one data set.
        title: above the figure.
    """
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    axes = figure.add_subplot()
    sizes = sorted(set.union(*(set(one) for seeds in runs.values() for one in seeds)))
    for number, ((label, seeds), style) in enumerate(zip(runs.items(), STYLES, strict=False)):
        color, dashes, marker = style
        common = sorted(set.intersection(*(set(one) for one in seeds)))
        values = np.array([[one[size] for size in common] for one in seeds])
        deviation = values.std(axis=0, ddof=1) if len(seeds) > 1 else None
        # A little beside each other, so that the bars of two trainings do not lie upon each other.
        place = np.array(common) * 1.012 ** (number - (len(runs) - 1) / 2)
        axes.errorbar(place, values.mean(axis=0), deviation, color=color, linestyle=dashes, marker=marker,
                      markersize=6, linewidth=1.8, capsize=3, label=label)  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    tidy(axes)
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
    axes.set_xlabel("frames in the gallery of a query", fontsize=11)
    axes.set_ylabel("mAP, %", fontsize=11)
    axes.set_title(title, fontsize=10.5, loc="left")
    axes.legend(fontsize=10.5, handlelength=3.5, frameon=False)
    return figure


def draw_gallery_sizes(runs: Mapping[str, Sequence[Mapping[int, float]]], title: str, folder: Path) -> list[Path]:
    """Writes figure6.png and figure6.svg and returns their paths; see `gallery_figure`."""
    return save_both(gallery_figure(runs, title), folder / "figure6")
