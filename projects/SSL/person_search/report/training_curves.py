"""Curves of a training from its metrics.json: losses, and quality of the pseudo labels."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..errors import DatasetError
from ..io import replacing
from .palette import BLUE, GREY, VERMILION, tidy

Series = tuple[np.ndarray, np.ndarray]
"""Iterations (n,) int64, ascending, and values (n,) float64 logged at them."""

_LOSS_TITLES = {
    "loss_rpn_cls": "RPN objectness",
    "loss_rpn_loc": "RPN boxes",
    "loss_box_head_cls": "box head, classes",
    "loss_box_head_box": "box head, boxes",
    "loss_reid_head_cls": "re-id head, classes",
    "loss_reid_head_box": "re-id head, boxes",
    "loss_scale": "scale-invariant loss",
    "loss_cluster_instance": "cluster loss, instance bank",
    "loss_cluster_multi_scale": "cluster loss, multi-scale bank",
    "loss_multi_label_instance": "multi-label loss, instance bank",
    "loss_multi_label_multi_scale": "multi-label loss, multi-scale bank",
}
_DETECTION_LOSSES = tuple(_LOSS_TITLES)[:6]
_COLUMNS = 4
# Ratio of the largest to the smallest value above which a linear axis would hide the end of the curve.
_LOG_RATIO = 30.0
_DPI = 130


class _Panel(NamedTuple):
    title: str
    note: str
    names: tuple[str, ...]
    percent: bool


_PANELS = (
    _Panel(
        "Cluster labels",
        "pairs of persons; precision is 100 % where no pair shares a label",
        ("cluster_precision", "cluster_recall"),
        True,
    ),
    _Panel(
        "Multi-labels",
        "of other persons; precision is 100 % where none is given",
        ("multi_label_precision", "multi_label_recall"),
        True,
    ),
    _Panel("Clusters and singletons", "of all annotated persons", ("clusters", "singletons"), False),
    _Panel("Multi-label threshold", "t(e), Eq. 9", ("threshold",), False),
)


def read_metrics(path: str | os.PathLike[str]) -> dict[str, Series]:
    """Metrics in the metrics.json of a finished, resumed or running training.

    If iterations start over (a run started again in the same folder), later lines count. An incomplete last line is
    ignored.

    Args:
        path: file with a JSON object per line, each with "iteration", as written by Detectron2's `JSONWriter`.

    Returns:
        series by name of the metric; values that are not numbers are ignored.

    Raises:
        DatasetError: the file is missing or empty, or a line other than the last is malformed.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} cannot be read ({error}); give the output folder of a training") from error
    points: dict[str, dict[int, float]] = {}
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            iteration = int(entry.pop("iteration"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if number == len(lines):
                break  # being written
            raise DatasetError(
                f"{path}, line {number}: expected a JSON object with an iteration ({error!r}); remove the line"
            ) from error
        _add(points, iteration, entry)
    if not points:
        raise DatasetError(f"{path} holds no metrics yet: a training writes some every SOLVER.LOG_PERIOD iterations")
    return {
        name: (np.array(list(values), np.int64), np.array(list(values.values()), np.float64))
        for name, values in points.items()
    }


def _add(points: dict[str, dict[int, float]], iteration: int, entry: dict[str, object]) -> None:
    for name, value in entry.items():
        if not isinstance(value, (int, float)):
            continue
        values = points.setdefault(name, {})
        while values and next(reversed(values)) >= iteration:
            values.popitem()
        values[iteration] = float(value)


def iterations_per_epoch(metrics: dict[str, Series], clustering_period: int = 1) -> float | None:
    """Length of an epoch, from the iterations of the clusterings, which are all multiples of it.

    Args:
        metrics: see `read_metrics`.
        clustering_period: epochs between clusterings (SSL.CLUSTERING.PERIOD).

    Returns:
        iterations; None before the second clustering.
    """
    iterations = metrics.get("pseudo_labels/clusters", (np.zeros(0, np.int64),))[0]
    # Not the smallest difference: if an epoch is shorter than SOLVER.LOG_PERIOD, some clusterings are not logged.
    return int(np.gcd.reduce(iterations)) / clustering_period if len(iterations) > 1 else None


def learning_rate_steps(metrics: dict[str, Series]) -> list[int]:
    """Iterations at which the learning rate dropped to half or less: one past the last logged with the old rate.

    Rates are only known at logged iterations, so a drop may have come a few iterations later. A rate that was falling
    before, as at the end of a cosine schedule, is no step.
    """
    iterations, rates = metrics.get("lr", (np.zeros(0, np.int64), np.zeros(0)))
    was_falling = np.concatenate([[False], rates[1:-1] < 0.9 * rates[:-2]])[: max(len(rates) - 1, 0)]
    return (iterations[:-1][(rates[1:] <= 0.5 * rates[:-1]) & ~was_falling] + 1).tolist()


def loss_figure(metrics: dict[str, Series], epoch: float | None = None) -> Figure:
    """Panels for the total loss, the learning rate and each loss, with learning-rate steps marked.

    Axes are logarithmic if values span a factor of 30 or more.

    Args:
        metrics: see `read_metrics`.
        epoch: iterations per epoch; None to draw over iterations.

    Raises:
        DatasetError: there is no loss among the metrics.
    """
    names = [name for name in _LOSS_TITLES if name in metrics]
    names += sorted(name for name in metrics if name.startswith("loss_") and name not in names)
    if not names:
        raise DatasetError("metrics.json: no loss among the metrics yet; a training logs its first one soon")
    rows = -(-len(names) // _COLUMNS)
    figure = Figure(figsize=(13, 3.1 + 2.4 * rows), layout="constrained")
    grid = figure.add_gridspec(rows + 1, _COLUMNS)
    panels = {}
    if "total_loss" in metrics:
        panels["total_loss"] = figure.add_subplot(grid[0, :2])
    if "lr" in metrics:
        panels["lr"] = figure.add_subplot(grid[0, 2:])
    for number, name in enumerate(names):
        panels[name] = figure.add_subplot(grid[1 + number // _COLUMNS, number % _COLUMNS])
    steps = learning_rate_steps(metrics)
    for name, axes in panels.items():
        _plot(axes, metrics[name], _color(name), epoch, drawstyle="steps-pre" if name == "lr" else "default")
        _title(axes, {"total_loss": "sum of all losses", "lr": "learning rate", **_LOSS_TITLES}.get(name, ""), name)
        for step in steps:
            axes.axvline(step / (epoch or 1), color=GREY, linestyle=":", linewidth=1)
        _scale(axes, metrics[name][1])
    _share_x(figure, epoch)
    _loss_legend(figure, names, bool(steps))
    return figure


def pseudo_label_figure(metrics: dict[str, Series], epoch: float | None = None) -> Figure | None:
    """Panels for precision and recall of cluster labels and multi-labels, number of clusters, and threshold t(e).

    Args:
        metrics: see `read_metrics`. Without known identities, precision and recall are omitted.
        epoch: iterations per epoch; None to draw over iterations.

    Returns:
        The figure; None if no pseudo labels were logged.
    """
    panels = [panel for panel in _PANELS if any(f"pseudo_labels/{name}" in metrics for name in panel.names)]
    if not panels:
        return None
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(5.2 * columns, 0.5 + 3.2 * rows), layout="constrained")
    for number, panel in enumerate(panels, 1):
        _draw_panel(figure.add_subplot(rows, columns, number), panel, metrics, epoch)
    _share_x(figure, epoch)
    return figure


def draw_curves(
    metrics_file: str | os.PathLike[str], folder: str | os.PathLike[str], clustering_period: int = 1
) -> list[Path]:
    """Draws loss_curves.png and, if pseudo labels were logged, pseudo_labels.png.

    Args:
        metrics_file: metrics.json of a training.
        folder: folder of the pictures, created if missing.
        clustering_period: epochs between clusterings (SSL.CLUSTERING.PERIOD).

    Returns:
        paths of the pictures.

    Raises:
        DatasetError: see `read_metrics` and `loss_figure`, or a picture cannot be written.
    """
    metrics = read_metrics(metrics_file)
    epoch = iterations_per_epoch(metrics, clustering_period)
    figures = {"loss_curves.png": loss_figure(metrics, epoch), "pseudo_labels.png": pseudo_label_figure(metrics, epoch)}
    return [save_figure(figure, Path(folder) / name) for name, figure in figures.items() if figure is not None]


def save_figure(figure: Figure, path: Path) -> Path:
    """Writes a figure as PNG, atomically, and returns the path.

    Raises:
        DatasetError: it cannot be written.
    """
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=_DPI)
    return path


def _plot(axes: Axes, series: Series, color: str, epoch: float | None, **style: Any) -> None:
    iterations, values = series
    # Single points need a marker, many points would blur with markers; steps need none.
    marker = "o" if len(values) == 1 or (len(values) <= 40 and style.get("drawstyle") != "steps-pre") else ""
    axes.plot(iterations / (epoch or 1), values, color=color, linewidth=1.5, marker=marker, markersize=3, **style)
    tidy(axes, 8)


def _title(axes: Axes, title: str, note: str) -> None:
    axes.set_title(title or note, fontsize=10, loc="left", pad=16 if title else 6)
    if title:
        axes.annotate(note, (0, 1), (0, 4), "axes fraction", "offset points", fontsize=7.5, color=GREY)


def _color(name: str) -> str:
    if name in ("total_loss", "lr"):
        return "black"
    return BLUE if name in _DETECTION_LOSSES else VERMILION


def _scale(axes: Axes, values: np.ndarray) -> None:
    finite = values[np.isfinite(values)]
    if len(finite) > 1 and finite.min() > 0 and finite.max() / finite.min() >= _LOG_RATIO:
        axes.set_yscale("log")
    elif len(finite) and finite.min() >= 0:
        axes.set_ylim(0, 1.08 * finite.max() or 1)


def _share_x(figure: Figure, epoch: float | None) -> None:
    panels = figure.axes
    right = max(axes.dataLim.x1 for axes in panels if np.isfinite(axes.dataLim.x1)) or 1
    for axes in panels:
        axes.set_xlim(-0.02 * right, 1.02 * right)
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=not epoch or right > 3))
    figure.supxlabel("epoch" if epoch else "iteration", fontsize=10)


def _draw_panel(axes: Axes, panel: _Panel, metrics: dict[str, Series], epoch: float | None) -> None:
    for name, color, dashes in zip(panel.names, (BLUE, VERMILION), ("-", "--"), strict=False):
        iterations, values = metrics.get(f"pseudo_labels/{name}", (np.zeros(0), np.zeros(0)))
        # The threshold is constant within an epoch.
        style = {"linestyle": dashes, "drawstyle": "steps-pre" if name == "threshold" else "default"}
        factor = 100 if panel.percent else 1
        _plot(axes, (iterations, factor * values), color, epoch, label=name.rpartition("_")[2], **style)
    _title(axes, panel.title, panel.note)
    if panel.percent:
        axes.set_ylim(-3, 103)
        axes.set_ylabel("%")
    elif len(panel.names) > 1:
        # Slightly below 0, so that the axis does not cover a curve of few clusters.
        axes.set_ylim(bottom=-0.03 * axes.dataLim.y1)
    if len(panel.names) > 1:
        axes.legend(fontsize=9, frameon=False, loc="best")


def _loss_legend(figure: Figure, names: Sequence[str], steps: bool) -> None:
    handles = [Line2D([], [], color=BLUE, label="detection")] if any(n in _DETECTION_LOSSES for n in names) else []
    if any(n not in _DETECTION_LOSSES for n in names):
        handles.append(Line2D([], [], color=VERMILION, label="re-identification"))
    if steps:
        handles.append(Line2D([], [], color=GREY, linestyle=":", label="learning-rate step"))
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles), frameon=False, fontsize=9)
