"""Detections to search, grouped by frame, and their matching with annotated boxes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .problem import Galleries, SearchProblem, offsets_of, pairs


@dataclass(frozen=True)
class DetectionIndex:
    """The K detections of a problem above the score threshold, sorted by frame, in stored order within a frame.

    Attributes:
        detection: (K,) int64, indices in the problem.
        box: (K, 4) xyxy.
        score: (K,).
        feature: (K, d).
        frame: (K,) int64.
        start: (F,) int64 and
        count: (F,) int64: detections of frame f are at the positions `start[f], ..., start[f] + count[f] - 1`.
        camera: (K,) int64; None if unknown.
    """

    detection: np.ndarray
    box: np.ndarray
    score: np.ndarray
    feature: np.ndarray
    frame: np.ndarray
    start: np.ndarray
    count: np.ndarray
    camera: np.ndarray | None

    @classmethod
    def build(cls, problem: SearchProblem, score_threshold: float, score_weighted: bool = False) -> DetectionIndex:
        """Index of the detections of `problem` with a score of at least `score_threshold`.

        Args:
            problem: search problem.
            score_threshold: minimum score.
            score_weighted: whether to multiply features by scores (SeqNet's CWS).
        """
        detection = np.flatnonzero(problem.det_score >= score_threshold)
        detection = detection[np.argsort(problem.det_frame[detection], kind="stable")]
        feature = problem.det_feature.take(detection, axis=0)
        if feature.dtype not in (np.float32, np.float64):
            feature = feature.astype(np.float32)
        if score_weighted:
            feature *= problem.det_score[detection, None].astype(feature.dtype)
        frame = problem.det_frame[detection]
        count = np.bincount(frame, minlength=len(problem.frame_name))
        return cls(
            detection=detection,
            box=problem.det_box[detection],
            score=problem.det_score[detection],
            feature=feature,
            frame=frame,
            start=offsets_of(count)[:-1],
            count=count,
            camera=None if problem.frame_camera is None else problem.frame_camera[frame],
        )


@dataclass(frozen=True)
class Matches:
    """Detections that overlap the targets of Q queries sufficiently, sorted by query and target.

    Attributes:
        offset: (Q + 1,) int64; matches of query q are the rows `offset[q]:offset[q + 1]`.
        detection: (M,) int64, positions in a `DetectionIndex`, in stored order within a target.
        target: (M,) int64, rows of the targets of the galleries.
    """

    offset: np.ndarray
    detection: np.ndarray
    target: np.ndarray


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of pairs of boxes, in double precision.

    Args:
        a, b: (n, 4) xyxy.

    Returns:
        (n,) float64; 0 if both boxes have no area.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    size = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    intersection = np.maximum(size[:, 0], 0) * np.maximum(size[:, 1], 0)
    union = np.prod(a[:, 2:] - a[:, :2], axis=1) + np.prod(b[:, 2:] - b[:, :2], axis=1) - intersection
    return np.divide(intersection, union, out=np.zeros(len(a)), where=union > 0)


def iou_threshold(box: np.ndarray) -> np.ndarray:
    """Minimum IoU with a ground-truth box: min(0.5, wh / ((w + 10)(h + 10))), lower for small persons (OIM's protocol).

    Args:
        box: (n, 4) xyxy pixels.

    Returns:
        (n,) float64; 0 for a box without area.
    """
    width, height = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
    return np.minimum(0.5, width * height / ((width + 10) * (height + 10)))


def match_targets(galleries: Galleries, index: DetectionIndex, searchable: np.ndarray) -> Matches:
    """Matches of each target: detections of its frame that reach its IoU threshold and overlap it.

    Args:
        galleries: galleries with the targets.
        index: detections to search.
        searchable: (Q,) bool; other queries get no matches.
    """
    target, detection = pairs(index.start[galleries.target_frame], index.count[galleries.target_frame])
    iou = box_iou(index.box[detection], galleries.target_box[target])
    matched = (iou >= iou_threshold(galleries.target_box)[target]) & (iou > 0)
    query = np.repeat(np.arange(len(searchable)), np.diff(galleries.target_offset))[target]
    matched &= searchable[query]
    count = np.bincount(query[matched], minlength=len(searchable))
    return Matches(offsets_of(count), detection[matched], target[matched])


class Members:
    """Membership of detections in the gallery of each query.

    Attributes:
        galleries: galleries of Q queries.
        index: detections to search.
        query_camera: (Q,) integer, camera whose frames are excluded for each query; None for none.
    """

    def __init__(self, problem: SearchProblem, galleries: Galleries, index: DetectionIndex) -> None:
        self.galleries, self.index = galleries, index
        self.query_camera: np.ndarray | None = None
        if galleries.other_cameras_only:
            assert problem.frame_camera is not None  # checked by `SearchProblem`
            self.query_camera = problem.frame_camera[problem.query_frame]

    def frames(self, first: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Listed frames of the queries `first`, `first + 1`, ...: offsets (number + 1,) and frames (n,)."""
        frame_offset, frame = self.galleries.frame_offset, self.galleries.frame
        assert frame_offset is not None and frame is not None
        offset = frame_offset[first : first + number + 1]
        return offset - offset[0], frame[offset[0] : offset[-1]]

    def masked(self, query: int, row: np.ndarray) -> np.ndarray:
        """Copy of similarities (K,) with -inf for detections outside the query's gallery."""
        index = self.index
        if self.galleries.frame is not None:
            masked = np.full(len(index.start), -np.inf, row.dtype)
            masked[self.frames(query, 1)[1]] = 0
            masked = masked.take(index.frame)
            masked += row
            return masked
        masked = row.copy()
        assert self.galleries.excluded_frame is not None
        excluded = self.galleries.excluded_frame[query]
        if excluded >= 0:
            masked[index.start[excluded] : index.start[excluded] + index.count[excluded]] = -np.inf
        if self.query_camera is not None:
            masked[index.camera == self.query_camera[query]] = -np.inf
        return masked
