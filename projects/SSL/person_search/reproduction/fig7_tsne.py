"""Figure 7: t-SNE of the features of some identities (van der Maaten and Hinton, 2008)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from sklearn.manifold import TSNE

from ..errors import DatasetError
from ..evaluation import SearchProblem
from ..evaluation.detections import box_iou
from ..evaluation.problem import pairs
from ..report.palette import CATEGORIES, INK
from .compared import save_both
from .fig1_scales import LARGE, SMALL

IDENTITIES = 10
_MOST_BOXES = 60  # per identity; more would hide each other
_LEAST_IOU = 0.5
_SIZES = {"small, below 3,600 pixels": "o", "medium": "x", "large, above 45,300 pixels": "s"}


@dataclass(frozen=True)
class LabelledFeatures:
    """Features of n detections of known persons.

    Attributes:
        feature: (n, d) of unit length.
        person: (n,) int64 identity.
        area: (n,) float64, area of the annotated box in pixels of the original frame.
    """

    feature: np.ndarray
    person: np.ndarray
    area: np.ndarray


def labelled_features(problem: SearchProblem, score_threshold: float = 0.5) -> LabelledFeatures:
    """Detections of known persons: for each annotated box, the one with the highest IoU, at least 0.5.

    Args:
        problem: search problem.
        score_threshold: minimum score.
    """
    order = np.argsort(problem.det_frame, kind="stable")
    order = order[problem.det_score[order] >= score_threshold]
    frame = problem.det_frame[order]
    known = np.flatnonzero(problem.gt_person_id >= 0)
    first = np.searchsorted(frame, problem.gt_frame[known], "left")
    count = np.searchsorted(frame, problem.gt_frame[known], "right") - first
    which, place = pairs(first, count)
    detection, box = order[place], known[which]
    iou = box_iou(problem.det_box[detection], problem.gt_box[box])
    best = np.lexsort((-iou, box))
    best = best[np.concatenate([[True], box[best][1:] != box[best][:-1]])] if len(best) else best
    best = best[iou[best] >= _LEAST_IOU]
    gt_box = problem.gt_box[box[best]]
    area = (gt_box[:, 2] - gt_box[:, 0]) * (gt_box[:, 3] - gt_box[:, 1])
    return LabelledFeatures(problem.det_feature[detection[best]], problem.gt_person_id[box[best]], area)


def choose_identities(person: np.ndarray, area: np.ndarray, count: int = IDENTITIES) -> list[int]:
    """Identities with the largest ratio of sizes (largest to smallest area) among those with enough boxes, ascending.

    Args:
        person: (n,) identity of each box.
        area: (n,) pixels.
        count: maximum number of identities.
    """
    numbers, boxes = np.unique(person, return_counts=True)
    enough = numbers[boxes >= min(5, boxes.max(initial=0))].tolist()
    ratio = {number: area[person == number].max() / area[person == number].min() for number in enough}
    return sorted(sorted(enough, key=lambda number: (-ratio[number], number))[:count])


def embed(feature: np.ndarray, seed: int = 0) -> np.ndarray:
    """Positions in the plane, (n, 2) float32, of features (n, d), by t-SNE of their cosine distances."""
    perplexity = float(np.clip(len(feature) / 6, 2, 30))
    return TSNE(perplexity=perplexity, metric="cosine", init="pca", random_state=seed).fit_transform(feature)


def tsne_figure(runs: Mapping[str, LabelledFeatures], count: int = IDENTITIES) -> Figure:
    """A panel for each training; color and number show the identity, the marker shows the size. All show the same
    persons.

    The number is at the median of an identity's boxes, with a line to each of them.

    Args:
        runs: features by title, all of one dataset.
        count: number of identities.

    Raises:
        DatasetError: a training has found fewer than eight boxes of these persons.
    """
    first = next(iter(runs.values()))
    chosen = choose_identities(first.person, first.area, count)
    figure = Figure(figsize=(6.1 * len(runs), 6.6), layout="constrained")
    for number, (title, features) in enumerate(runs.items(), 1):
        rows = np.concatenate([np.flatnonzero(features.person == p)[:_MOST_BOXES] for p in chosen])
        if len(rows) < 8:
            raise DatasetError(f"{title}: only {len(rows)} boxes of the chosen persons were found, too few for t-SNE")
        place = embed(features.feature[rows])
        axes = figure.add_subplot(1, len(runs), number)
        _draw(axes, place, features.person[rows], features.area[rows], chosen)
        axes.set_title(title, fontsize=12, loc="left")
    handles = [
        Line2D([], [], linestyle="none", marker=marker, color=INK, markersize=8, markeredgewidth=1.6,
               fillstyle="none", label=words)
        for words, marker in _SIZES.items()
    ]  # fmt: skip
    digit = Line2D([], [], linestyle="none", marker="$1$", color=INK, markersize=8, label="identity (and color)")
    handles.insert(0, digit)
    columns = 4 if len(runs) > 1 else 2
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, fontsize=11, frameon=False)
    return figure


def draw_tsne(runs: Mapping[str, LabelledFeatures], folder: Path) -> list[Path]:
    """Writes figure7.png and figure7.svg and returns their paths; see `tsne_figure`."""
    return save_both(tsne_figure(runs), folder / "figure7")


def _draw(axes: Axes, place: np.ndarray, person: np.ndarray, area: np.ndarray, chosen: list[int]) -> None:
    size = np.digitize(area, (SMALL, np.nextafter(LARGE, np.inf)))
    for number, (identity, color) in enumerate(zip(chosen, CATEGORIES * 2, strict=False), 1):
        own = person == identity
        for which, marker in enumerate(_SIZES.values()):
            x, y = place[own & (size == which)].T
            # Hollow, so that overlaps are visible.
            face: dict[str, Any] = {} if marker == "x" else {"facecolors": "none"}
            axes.scatter(x, y, s=44, marker=marker, linewidths=1.5, color=color if marker == "x" else None,
                         edgecolors=None if marker == "x" else color, **face)  # fmt: skip
        if own.any():
            x, y = np.median(place[own], axis=0)
            spokes = [((x, y), end) for end in place[own]]
            axes.add_collection(LineCollection(spokes, colors=color, linewidths=0.7, alpha=0.35, zorder=0.5))
            axes.annotate(str(number), (x, y), ha="center", va="center", fontsize=13, weight="bold", color=color,
                          path_effects=[withStroke(linewidth=3, foreground="white")])  # fmt: skip
    axes.set(xticks=[], yticks=[])
    axes.margins(0.05)
