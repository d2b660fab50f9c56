"""Figure 4: precision and recall of the pseudo labels over the epochs, for several trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..errors import DatasetError
from ..report.palette import tidy
from ..report.training_curves import Series, iterations_per_epoch
from .compared import STYLES, Style, save_both

_PANELS = {
    "cluster_precision": "cluster labels: precision",
    "cluster_recall": "cluster labels: recall",
    "multi_label_precision": "multi-labels: precision (100 where none is given)",
    "multi_label_recall": "multi-labels: recall",
}


def over_seeds(series: Sequence[Series]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and sample standard deviation of a metric over trainings, at the iterations logged by all.

    Args:
        series: iterations and values of each training.

    Returns:
        iterations (n,) int64, means (n,) and deviations (n,) float64; deviations are 0 for a single training.
    """
    common = series[0][0]
    for iterations, _ in series[1:]:
        common = np.intersect1d(common, iterations)
    values = np.array([value[np.searchsorted(iterations, common)] for iterations, value in series])
    deviation = values.std(axis=0, ddof=1) if len(series) > 1 else np.zeros(len(common))
    return common, values.mean(axis=0), deviation


def label_figure(
    runs: Mapping[str, Sequence[Mapping[str, Series]]], periods: Mapping[str, int] | None = None
) -> Figure:
    """Four panels with a line for each kind of training: the mean over its seeds, and a band for the deviation.

    Args:
        runs: metrics of each seed by title, see `read_metrics`.
        periods: epochs between clusterings (SSL.CLUSTERING.PERIOD) by title; 1 if missing.

    Raises:
        DatasetError: no training has logged precision and recall, which needs known identities.
    """
    figure = Figure(figsize=(9.6, 6.4), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    drawn = False
    for panel, (name, title) in zip(axes.ravel(), _PANELS.items(), strict=True):
        for (label, metrics), style in zip(runs.items(), STYLES, strict=False):
            drawn |= _draw(panel, label, metrics, f"pseudo_labels/{name}", style, (periods or {}).get(label, 1))
        panel.set_title(title, fontsize=11, loc="left")
        panel.set_ylim(-3, 103)
        panel.xaxis.set_major_locator(MaxNLocator(7, integer=True))
        panel.tick_params(labelbottom=True, labelleft=True)
        tidy(panel)
    if not drawn:
        raise DatasetError(
            f"no precision or recall of pseudo labels in the metrics of {', '.join(runs)}: the training set needs "
            "identities, and the method pseudo labels"
        )
    figure.supxlabel("epoch", fontsize=11)
    figure.supylabel("%", fontsize=11)
    handles, labels = next(ax for ax in axes.ravel() if ax.lines).get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=10.5, frameon=False, handlelength=3.5)
    return figure


def draw_labels(
    runs: Mapping[str, Sequence[Mapping[str, Series]]], folder: Path, periods: Mapping[str, int] | None = None
) -> list[Path]:
    """Writes figure4.png and figure4.svg and returns their paths; see `label_figure`."""
    return save_both(label_figure(runs, periods), folder / "figure4")


def _draw(
    axes: Axes, label: str, metrics: Sequence[Mapping[str, Series]], name: str, style: Style, period: int
) -> bool:
    with_name = [one for one in metrics if name in one]
    if not with_name:
        return False
    iterations, mean, deviation = over_seeds([one[name] for one in with_name])
    epoch = iterations / (iterations_per_epoch(dict(with_name[0]), period) or 1)
    color, dashes, marker = style
    axes.plot(epoch, 100 * mean, color=color, linestyle=dashes, marker=marker, markersize=5, linewidth=1.8, label=label)
    axes.fill_between(epoch, 100 * (mean - deviation), 100 * (mean + deviation), color=color, alpha=0.15, linewidth=0)
    return True
