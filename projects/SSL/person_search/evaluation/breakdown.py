"""Search figures of parts of the queries: by camera and by height of the person in the query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .problem import SearchProblem
from .results import SearchResult

HEIGHT_EDGES = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768)
"""Bounds of the bins of heights, in pixels: half octaves, so that a bin spans a factor of about 1.4."""


@dataclass(frozen=True)
class Part:
    """Figures of some queries, as fractions.

    Attributes:
        queries: how many of them have a match to find; the means are over these.
        mAP, top1: means; NaN without such a query.
    """

    queries: int
    mAP: float
    top1: float


def figures_of(result: SearchResult, chosen: np.ndarray) -> Part:
    """The figures of the queries where `chosen` (Q,) bool is set; those without a match to find are left out."""
    counted = chosen & (result.target_count > 0)
    if not counted.any():
        return Part(0, float("nan"), float("nan"))
    return Part(int(counted.sum()), float(result.ap[counted].mean()), float((result.first_hit[counted] == 1).mean()))


def by_camera(problem: SearchProblem, result: SearchResult) -> dict[int, Part]:
    """Figures by the camera of the query's frame, by rising camera; empty where the cameras are not known."""
    if problem.frame_camera is None:
        return {}
    camera = problem.frame_camera[problem.query_frame]
    return {int(number): figures_of(result, camera == number) for number in np.unique(camera)}


def by_height(
    problem: SearchProblem, result: SearchResult, edges: Sequence[float] = HEIGHT_EDGES
) -> dict[tuple[float, float], Part]:
    """Figures by the height of the query box.

    Args:
        problem: its query boxes, in pixels of the original frame.
        result: of one of its galleries.
        edges: rising bounds in pixels; a bin holds its lower bound, not its upper one.

    Returns:
        (lower, upper) -> figures, by rising height, for each bin with a query; the first starts at 0, the last ends at
        infinity.
    """
    height = problem.query_box[:, 3] - problem.query_box[:, 1]
    bounds = (0.0, *edges, float("inf"))
    place = np.searchsorted(edges, height, "right")
    return {(bounds[i], bounds[i + 1]): figures_of(result, place == i) for i in np.unique(place).tolist()}
