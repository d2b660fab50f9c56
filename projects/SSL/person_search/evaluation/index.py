"""The detections that are searched, grouped by frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .problem import SearchProblem
from .ragged import offsets_of


@dataclass(frozen=True)
class DetectionIndex:
    """The K detections of a problem above the score threshold, sorted by frame, in stored order within one.

    Attributes:
        detection: (K,) int64, their indices in the problem.
        box: (K, 4) xyxy.
        score: (K,).
        feature: (K, d).
        frame: (K,) int64.
        start: (F,) int64 and
        count: (F,) int64: the detections of frame f are the positions `start[f], ..., start[f] + count[f] - 1`.
        camera: (K,) int64, None where unknown.
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
        """Groups the detections of `problem` with a score of at least `score_threshold`.

        Args:
            score_weighted: multiply each feature by its detection's score (SeqNet's CWS).
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
