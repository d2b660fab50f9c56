"""Figure 1: range of the sizes at which each person is seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from ..errors import DatasetError
from ..report.palette import BLUE, GREY, INK, VERMILION, tidy
from .compared import save_both

SMALL, LARGE = 3600, 45300
"""Areas in pixels: below the first a person is small, above the second large (paper, t-SNE figure)."""


def areas_by_identity(records: Sequence[Mapping[str, Any]]) -> dict[int, np.ndarray]:
    """Box areas of every identity that is seen at least twice.

    Args:
        records: dataset records, with boxes in XYXY_ABS.

    Returns:
        (n,) float64 areas in pixels of the original frame, ascending, by identity; unlabelled persons are ignored.
    """
    areas: dict[int, list[float]] = {}
    for record in records:
        for annotation in record["annotations"]:
            x0, y0, x1, y1 = annotation["bbox"]
            if annotation.get("person_id", -1) >= 0:
                areas.setdefault(annotation["person_id"], []).append((x1 - x0) * (y1 - y0))
    return {person: np.sort(values) for person, values in areas.items() if len(values) > 1}


def scale_figure(datasets: Mapping[str, Mapping[int, np.ndarray]]) -> Figure:
    """Range of the box areas of every identity, and ratio of the largest to the smallest, for each dataset.

    Args:
        datasets: areas of the identities by name, see `areas_by_identity`.

    Raises:
        DatasetError: nobody is seen twice in a dataset.
    """
    figure = Figure(figsize=(11, 0.7 + 3.6 * len(datasets)), layout="constrained")
    axes = figure.subplots(len(datasets), 2, width_ratios=(1.7, 1), squeeze=False)
    for (left, right), (name, areas) in zip(axes, datasets.items(), strict=True):
        if not areas:
            raise DatasetError(f"{name}: no identity is seen twice, so there is no distribution of scales to draw")
        _draw_ranges(left, name, areas)
        _draw_ratios(right, areas)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside lower left", ncols=3, fontsize=10, frameon=False
    )
    return figure


def draw_scales(datasets: Mapping[str, Mapping[int, np.ndarray]], folder: Path) -> list[Path]:
    """Writes figure1.png and figure1.svg and returns their paths; see `scale_figure`."""
    return save_both(scale_figure(datasets), folder / "figure1")


def _draw_ranges(axes: Axes, name: str, areas: Mapping[int, np.ndarray]) -> None:
    ordered = sorted(areas.values(), key=np.median)
    place = np.arange(1, len(ordered) + 1)
    low, first, middle, third, high = np.array([np.percentile(a, (0, 25, 50, 75, 100)) for a in ordered]).T
    width = max(0.85, min(8.0, 260 / len(ordered)))
    thin = max(0.7, 0.45 * width)
    axes.vlines(place, low, high, color=BLUE, linewidth=thin, alpha=0.45, label="smallest to largest box")
    axes.vlines(place, first, third, color=BLUE, linewidth=width, label="middle half")
    axes.plot(
        place, middle, "_", color=VERMILION, markersize=max(2.5, 1.4 * width), markeredgewidth=1.6, label="median"
    )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.set_ylim(0.7 * min(low.min(), SMALL), 1.5 * max(high.max(), LARGE))
    tidy(axes)
    for border, words in ((SMALL, "small\nbelow\n3,600"), (LARGE, "large\nabove\n45,300")):
        axes.axhline(border, color=GREY, linestyle="--", linewidth=1)
        axes.annotate(words, (1, border), (5, 0), ("axes fraction", "data"), "offset points", va="center", fontsize=9,
                      color=INK, annotation_clip=False)  # fmt: skip
    axes.set_title(f"{name}: box areas of {len(ordered)} identities", fontsize=10.5, loc="left")
    axes.set_xlabel("identities, by rising median area", fontsize=10)
    axes.set_ylabel("area, pixels", fontsize=10)


def _draw_ratios(axes: Axes, areas: Mapping[int, np.ndarray]) -> None:
    ratio = np.array([values[-1] / values[0] for values in areas.values()])
    top = 2.0 ** np.ceil(np.log2(max(ratio.max(), 2.0)))
    axes.hist(
        ratio,
        bins=np.geomspace(1, top, 1 + 2 * int(np.log2(top))).tolist(),
        color=BLUE,
        edgecolor="white",
        linewidth=0.8,
    )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.axvline(np.median(ratio), color=VERMILION, linewidth=1.8)
    tidy(axes)
    axes.set_ylim(0, 1.18 * axes.get_ylim()[1])
    axes.set_title(f"largest area / smallest: median {np.median(ratio):.1f}", fontsize=10.5, loc="left")
    axes.set_xlabel("times", fontsize=10)
    axes.set_ylabel("identities", fontsize=10)
