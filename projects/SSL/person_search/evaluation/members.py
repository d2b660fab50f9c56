"""Which detections are searched for a query."""

from __future__ import annotations

import numpy as np

from .galleries import Galleries
from .index import DetectionIndex
from .problem import SearchProblem
from .ragged import ranges

# A gallery of at least one in so many frames is large.
_LARGE_GALLERY = 8


class Members:
    """Which detections are in the gallery of each query.

    Attributes:
        galleries: the gallery of each of Q queries.
        query_camera: (Q,) integer, the camera whose frames are left out for each query; None: none is.
    """

    def __init__(self, problem: SearchProblem, galleries: Galleries, index: DetectionIndex) -> None:
        self.galleries, self._index = galleries, index
        self.query_camera = problem.frame_camera[problem.query_frame] if galleries.other_cameras_only else None

    def select(self, query: int, row: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Similarities (n,) in the gallery and their positions in the row (K,), None where n = K.

        In a large gallery all K are returned, with -inf at those outside it: that is faster than picking the others.
        """
        frame = self._listed(query)
        if frame is None or _LARGE_GALLERY * len(frame) > len(self._index.start):
            return self.masked(query, row), None
        position = ranges(self._index.start[frame], self._index.count[frame])
        return row[position], position

    def masked(self, query: int, row: np.ndarray) -> np.ndarray:
        """A copy of the similarities (K,) with -inf at those that are not members."""
        index = self._index
        frame = self._listed(query)
        if frame is not None:
            masked = np.full(len(index.start), -np.inf, row.dtype)
            masked[frame] = 0
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

    def _listed(self, query: int) -> np.ndarray | None:
        galleries = self.galleries
        if galleries.frame is None:
            return None
        return galleries.frame[galleries.frame_offset[query] : galleries.frame_offset[query + 1]]
