"""What an evaluation yields."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .problem import SearchProblem

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


def query_rows(problem: SearchProblem, result: SearchResult) -> list[dict[str, Any]]:
    """One mapping a query, fit for JSON: the query, its figures and its best gallery results.

    Returns:
        For each query `frame`, `box` (xyxy pixels), `person_id`, `AP` (fraction, None without a match to find),
        `first_correct_rank` (from 1, None where none is found), `matches`, `matches_found` and `results`: `frame`,
        `box`, `score`, `similarity` and `correct` of the best detections.
    """
    rows = []
    for query, frame in enumerate(problem.query_frame.tolist()):
        rows.append(
            {
                "frame": problem.frame_name[frame],
                "box": _plain(problem.query_box[query]),
                "person_id": int(problem.query_person_id[query]),
                "AP": finite_or_none(result.ap[query]),
                "first_correct_rank": int(result.first_hit[query]) or None,
                "matches": int(result.target_count[query]),
                "matches_found": int(result.found_count[query]),
                "results": [
                    {
                        "frame": problem.frame_name[problem.det_frame[detection]],
                        "box": _plain(problem.det_box[detection]),
                        "score": round(float(problem.det_score[detection]), 6),
                        "similarity": round(float(result.best_similarity[query, rank]), 6),
                        "correct": bool(result.best_correct[query, rank]),
                    }
                    for rank, detection in enumerate(result.best_detection[query].tolist())
                    if detection >= 0
                ],
            }
        )
    return rows


def finite_or_none(value: float) -> float | None:
    """The value, or None (JSON null) for NaN."""
    return None if math.isnan(value) else float(value)


def _plain(box: np.ndarray) -> list[float]:
    return [round(float(value), 3) for value in box]
