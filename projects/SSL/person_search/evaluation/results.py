"""What an evaluation yields."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

TOP_K = (1, 5, 10)


@dataclass(frozen=True)
class SearchResult:
    """Search figures of one gallery, as fractions, and what each query contributes.

    Attributes:
        gallery: name of the gallery.
        mAP, top1, top5, top10: means over the queries with a match to find; NaN where no query has one.
        ap: (Q,) float64 average precision; NaN for a query without a match to find.
        first_hit: (Q,) int64, rank of the first correct detection counted from 1; 0: none was found.
        target_count: (Q,) int64, matches to find.
        found_count: (Q,) int64, matches found at any rank.
        best_detection: (Q, 10) int64, indices of the ten most similar detections in the problem; -1: fewer.
        best_similarity: (Q, 10) float64, 0 where there are fewer.
        best_correct: (Q, 10) bool, whether that detection is a true positive.
    """

    gallery: str
    mAP: float
    top1: float
    top5: float
    top10: float
    ap: np.ndarray
    first_hit: np.ndarray
    target_count: np.ndarray
    found_count: np.ndarray
    best_detection: np.ndarray
    best_similarity: np.ndarray
    best_correct: np.ndarray

    @property
    def num_evaluated(self) -> int:
        """Queries with a match to find: those that the means are over."""
        return int(np.count_nonzero(self.target_count))

    def figures(self, scale: float = 1.0) -> dict[str, float]:
        """mAP, top1, top5 and top10, times `scale`."""
        return {name: scale * getattr(self, name) for name in ("mAP", "top1", "top5", "top10")}


def finite_or_none(value: float) -> float | None:
    """The value, or None (JSON null) for NaN."""
    return None if math.isnan(value) else float(value)
