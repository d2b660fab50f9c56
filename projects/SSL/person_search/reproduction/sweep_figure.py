"""One page of small plots: how much the result depends on each parameter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..report.palette import BLUE, GREY, VERMILION, tidy
from .compared import save_both
from .rows import Parameter
from .tables import Spread

_COLUMNS = 3


class SweepPoint(NamedTuple):
    """mAP (percent) of the trainings with one value of a parameter."""

    value: float
    mAP: Spread


def sweep_figure(
    panels: Mapping[Parameter, Sequence[SweepPoint]], defaults: Mapping[Parameter, float], title: str
) -> Figure:
    """A panel for each parameter: mean of mAP with the deviation over the seeds; the dataset's own value is marked.

    Values stand at even distances, whatever they are, so that none lie upon each other. All panels share one scale, so
    that a parameter which hardly matters looks flat.

    Args:
        panels: parameter -> its points, by rising value; points without a finished training are left out.
        defaults: parameter -> the dataset's own value.
        title: above the page.
    """
    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 0.9 + 2.7 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for panel, (parameter, points) in zip(axes, panels.items(), strict=False):
        _draw(panel, points, defaults[parameter])
        panel.set_title(parameter.title, fontsize=10.5, loc="left")
    for panel in axes[len(panels) :]:
        panel.set_visible(False)
    figure.supylabel("mAP, %", fontsize=11)
    figure.suptitle(title, fontsize=11, x=0.01, ha="left")
    spread = any(point.mAP.deviation > 0 for points in panels.values() for point in points)
    figure.legend(handles=_legend(spread), loc="outside lower right", ncols=3, fontsize=10, frameon=False)
    return figure


def draw_sweep(
    panels: Mapping[Parameter, Sequence[SweepPoint]], defaults: Mapping[Parameter, float], title: str, folder: Path
) -> list[Path]:
    """Writes sweep.png and sweep.svg and returns their paths; see `sweep_figure`."""
    return save_both(sweep_figure(panels, defaults, title), folder / "sweep")


def _draw(axes: Axes, points: Sequence[SweepPoint], default: float) -> None:
    place = np.arange(len(points))
    mean = np.array([point.mAP.mean for point in points])
    deviation = np.array([point.mAP.deviation for point in points])  # NaN with one seed: no bar
    axes.errorbar(place, mean, deviation, color=BLUE, marker="o", markersize=5, linewidth=1.5, capsize=4)
    own = [i for i, point in enumerate(points) if point.value == default]
    axes.plot(place[own], mean[own], "D", color=VERMILION, markersize=10, fillstyle="none", markeredgewidth=2)
    axes.set_xticks(place, [f"{point.value:g}" for point in points], fontsize=10)
    axes.set_xlim(-0.4, len(points) - 0.6)
    tidy(axes)
    axes.tick_params(axis="y", labelleft=True)


def _legend(spread: bool) -> list[Line2D]:
    bars = Line2D([], [], color=GREY, marker="|", markersize=12, linestyle="none", label="± standard deviation")
    return [
        Line2D([], [], color=BLUE, marker="o", markersize=5, label="mean over the seeds" if spread else "one seed"),
        *([bars] if spread else []),
        Line2D([], [], color=VERMILION, marker="D", markersize=9, fillstyle="none", linestyle="none",
               markeredgewidth=2, label="the dataset's own value"),
    ]  # fmt: skip
