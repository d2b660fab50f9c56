"""Which detections are searched for a query."""

from __future__ import annotations

import numpy as np

from .galleries import Galleries
from .index import DetectionIndex
from .problem import SearchProblem


class Members:
    """Which detections are in the gallery of each query.

    Attributes:
        galleries: the gallery of each of Q queries.
        index: the detections.
        query_camera: (Q,) integer, the camera whose frames are left out for each query; None: none is.
    """

    def __init__(self, problem: SearchProblem, galleries: Galleries, index: DetectionIndex) -> None:
        self.galleries, self.index = galleries, index
        self.query_camera = problem.frame_camera[problem.query_frame] if galleries.other_cameras_only else None

    def frames(self, first: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The listed frames of the queries `first`, `first + 1`, ...: offsets (number + 1,) and frames (n,)."""
        offset = self.galleries.frame_offset[first : first + number + 1]
        return offset - offset[0], self.galleries.frame[offset[0] : offset[-1]]

    def masked(self, query: int, row: np.ndarray) -> np.ndarray:
        """A copy of the similarities (K,) with -inf at those that are not members."""
        index = self.index
        if self.galleries.frame is not None:
            masked = np.full(len(index.start), -np.inf, row.dtype)
            masked[self.frames(query, 1)[1]] = 0
            masked = masked.take(index.frame)
            masked += row
            return masked
        masked = row.copy()
        excluded = self.galleries.excluded_frame[query]
        if excluded >= 0:
            masked[index.start[excluded] : index.start[excluded] + index.count[excluded]] = -np.inf
        if self.query_camera is not None:
            masked[index.camera == self.query_camera[query]] = -np.inf
        return masked
