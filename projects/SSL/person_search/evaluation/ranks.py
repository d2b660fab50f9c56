"""What is ranked for the figures of search, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .members import Members


@dataclass(frozen=True)
class Found:
    """True positives of b queries in a gallery.

    Attributes:
        members: the gallery; None: all detections but those with a similarity of -inf.
        first: the first of the queries.
        offset: (b + 1,); those of the i-th query are `offset[i], ..., offset[i + 1] - 1`.
        position: (t,) int64, positions in a `DetectionIndex`.
        value: (t,) their similarities.
    """

    members: Members | None
    first: int
    offset: np.ndarray
    position: np.ndarray
    value: np.ndarray


@dataclass(frozen=True)
class Ranks:
    """What the figures need of the ranking of b queries.

    Attributes:
        retrieved: (t,) int64, how many detections of the gallery are at least as similar as each true positive.
        best_row: (m,) int64, rising: the query, counted from 0 in the block, of each of its best detections.
        best_position: (m,) int64, positions in a `DetectionIndex`; in no order within a query, with all that equal the
            last of the best.
        best_value: (m,) their similarities.
    """

    retrieved: np.ndarray
    best_row: np.ndarray
    best_position: np.ndarray
    best_value: np.ndarray
