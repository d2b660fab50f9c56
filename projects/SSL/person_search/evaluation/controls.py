"""Controls: searches on the same detections without re-id learning, for comparison with a trained network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np

from ..errors import DatasetError
from ..progress import Progress
from .metrics import SearchOptions, SearchResult, evaluate_galleries
from .problem import SearchProblem

RANDOM, HISTOGRAM, BACKBONE = "random", "color_histogram", "backbone"
TITLES = {
    RANDOM: "random vectors",
    HISTOGRAM: "color histogram",
    BACKBONE: "backbone as it starts",
}
"""Controls by name, in display order."""
_RANDOM_DIM = 256
_CROP = (48, 96)  # width and height in pixels that boxes are resized to
_STRIPES, _BINS = 6, (12, 4, 4)
_RANGES = [0, 180, 0, 256, 0, 256]  # hue, saturation and value of 8-bit OpenCV
_READERS = 4


@dataclass(frozen=True)
class BoxFeatures:
    """Features of the boxes of a search problem, instead of the network's.

    Attributes:
        detections: (D, d) float32, rows of unit length.
        queries: (Q, d) float32, of the query boxes themselves.
    """

    detections: np.ndarray
    queries: np.ndarray


def random_features(problem: SearchProblem, seed: int = 0) -> BoxFeatures:
    """Random directions, that is, chance."""
    generator = np.random.default_rng(seed)
    sizes = (len(problem.det_frame), len(problem.query_frame))
    return BoxFeatures(*(_unit(generator.standard_normal((n, _RANDOM_DIM)).astype(np.float32)) for n in sizes))


def histogram_features(problem: SearchProblem, read_frame: Callable[[str], np.ndarray]) -> BoxFeatures:
    """Color histograms of the boxes; see `color_histograms`.

    Args:
        problem: search problem.
        read_frame: returns the frame of a name, RGB uint8 (H, W, 3).

    Raises:
        DatasetError: a frame cannot be read.
    """
    detections = np.zeros((len(problem.det_frame), _dimension()), np.float32)
    queries = np.zeros((len(problem.query_frame), _dimension()), np.float32)
    by_frame: dict[int, list[np.ndarray]] = {}
    for boxes, rows in ((problem.det_frame, 0), (problem.query_frame, 1)):
        order = np.argsort(boxes, kind="stable")
        frames, count = np.unique(boxes, return_counts=True)
        # Without any box, as for a network that detects nothing yet, there is no part either.
        for frame, members in zip(frames.tolist(), np.split(order, count.cumsum())[:-1], strict=True):
            by_frame.setdefault(frame, [np.zeros(0, np.int64)] * 2)[rows] = members

    def fill(frame: int) -> None:
        found, asked = by_frame[frame]
        boxes = np.concatenate([problem.det_box[found], problem.query_box[asked]])
        vectors = color_histograms(read_frame(problem.frame_name[frame]), boxes)
        detections[found], queries[asked] = vectors[: len(found)], vectors[len(found) :]

    _over_frames(fill, sorted(by_frame))
    return BoxFeatures(detections, queries)


def color_histograms(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """HSV histograms of horizontal stripes of each box, which describe a person's colors from top to bottom.

    A crop of whole pixels is resized to 48 x 96 and split into six stripes with histograms of 12 x 4 x 4 bins; the
    square roots of their frequencies are concatenated and scaled to unit length.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (n, 4) xyxy in pixels; may exceed the image.

    Returns:
        (n, 1152) float32.
    """
    height, width = image.shape[:2]
    first = np.clip(np.round(boxes[:, :2]).astype(np.int64), 0, [width - 1, height - 1])
    end = np.clip(np.round(boxes[:, 2:]).astype(np.int64), first + 1, [width, height])
    vectors = np.empty((len(boxes), _dimension()), np.float32)
    for row, ((left, top), (right, bottom)) in enumerate(zip(first.tolist(), end.tolist(), strict=True)):
        crop = cv2.resize(image[top:bottom, left:right], _CROP, interpolation=cv2.INTER_LINEAR)
        stripes = np.split(cv2.cvtColor(crop, cv2.COLOR_RGB2HSV), _STRIPES)
        counts = [cv2.calcHist([stripe], [0, 1, 2], None, _BINS, _RANGES).ravel() for stripe in stripes]
        vectors[row] = np.concatenate([np.sqrt(count / count.sum()) for count in counts])
    return _unit(vectors)


class ControlResults(NamedTuple):
    """Searches by other features than the network's.

    Attributes:
        results: control -> gallery -> result.
        left_out: control -> why it has no result.
    """

    results: dict[str, dict[str, SearchResult]]
    left_out: dict[str, str]


def evaluate_controls(
    problem: SearchProblem,
    options: SearchOptions,
    features: Mapping[str, Callable[[], BoxFeatures]],
) -> ControlResults:
    """Results of searching the detections of a problem with other features than the network's.

    Args:
        problem: search problem.
        options: search options.
        features: functions that return the features, by name of the control.
    """
    found = ControlResults({}, {})
    for name, make in features.items():
        try:
            own = make()
        except DatasetError as error:
            found.left_out[name] = str(error)
            continue
        searched = replace(problem, det_feature=own.detections, query_feature=own.queries)
        found.results[name] = evaluate_galleries(searched, options)
    return found


def below_histogram(figures: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Searches of results.json whose mAP is below that of the color histogram, as "<name> <mAP> < <mAP>"."""
    below = []
    for name, own in figures.items():
        control = figures.get(name.replace("search", f"control_{HISTOGRAM}", 1)) if name.startswith("search") else None
        if control is not None and own["mAP"] < control["mAP"]:
            below.append(f"{name} {own['mAP']:.1f} < {control['mAP']:.1f}")
    return below


def _over_frames(work: Callable[[int], None], frames: list[int]) -> None:
    progress = Progress("Color histograms", len(frames), "frames")
    with ThreadPoolExecutor(_READERS) as pool:
        for _ in pool.map(work, frames):
            progress.finished(1)


def _dimension() -> int:
    return _STRIPES * int(np.prod(_BINS))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
