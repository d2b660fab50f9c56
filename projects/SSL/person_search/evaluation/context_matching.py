"""Context bipartite graph matching (CBGM) of SeqNet: the people around a person help to recognise it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..errors import ConfigError
from .index import DetectionIndex
from .matching import box_iou
from .problem import SearchProblem
from .ragged import offsets_of
from .ranking import highest


@dataclass(frozen=True)
class ContextMatching:
    """Settings of CBGM.

    Attributes:
        k1: the frames of so many best gallery detections are looked at.
        k2: persons of the query's side: the query itself and then the first detections of its frame.
        query_nms: detections of the query's frame with an IoU above this to the query box are no context: they show the
            query itself, and an assignment that gives its match to them leaves the query a stranger. SeqNet's model
            drops them by the NMS of its second head, at 0.5; 1 keeps all, as its evaluation code by itself does.

    Raises:
        ConfigError: a number is out of its range.
    """

    k1: int = 30
    k2: int = 4
    query_nms: float = 1.0

    def __post_init__(self) -> None:
        if self.k1 < 1 or self.k2 < 1:
            raise ConfigError(f"context matching: k1 = {self.k1} and k2 = {self.k2} have to be at least 1")
        if not 0 <= self.query_nms <= 1:
            raise ConfigError(f"context matching: query_nms = {self.query_nms} has to be in 0..1")


class ContextRescorer:
    """Raises the similarity of the detection to which CBGM assigns the query.

    In each frame looked at, the query and its context persons are assigned to the detections of the frame so that
    the sum of the similarities is greatest. The detection that goes to the query then takes the greatest similarity
    among all assigned pairs (so SeqNet's code; its paper does not say what becomes of the similarities). Nothing
    changes where no detection is left for the query.

    Args:
        problem: the context persons are all detections of the query's frame, in stored order, whatever their score.
        index: the gallery.
        settings: k1 and k2.
        score_weighted: multiply the features of context persons by their scores, as those of the gallery are.
    """

    def __init__(
        self, problem: SearchProblem, index: DetectionIndex, settings: ContextMatching, score_weighted: bool
    ) -> None:
        self._problem, self._index, self._settings, self._weighted = problem, index, settings, score_weighted
        self._by_frame = np.argsort(problem.det_frame, kind="stable")
        self._offset = offsets_of(np.bincount(problem.det_frame, minlength=len(problem.frame_name)))

    def __call__(self, query: int, similarity: np.ndarray) -> np.ndarray:
        """New similarities (K,) of one query from its similarities (K,), -inf outside its gallery."""
        index, settings = self._index, self._settings
        best = highest(similarity, settings.k1)
        best = best[np.argsort(-similarity[best], kind="stable")][: settings.k1]
        persons = self._persons(query)
        rescored = similarity.copy()
        for frame in np.unique(index.frame[best]):
            seen = slice(index.start[frame], index.start[frame] + index.count[frame])
            weight = persons @ index.feature[seen].T
            person, detection = linear_sum_assignment(weight, maximize=True)
            if person[0] == 0:  # persons come back in rising order
                rescored[index.start[frame] + detection[0]] = weight[person, detection].max()
        return rescored

    def _persons(self, query: int) -> np.ndarray:
        """Features of the query and its context, (<= k2, d)."""
        problem = self._problem
        frame = problem.query_frame[query]
        context = self._by_frame[self._offset[frame] : self._offset[frame + 1]]
        if self._settings.query_nms < 1:
            query_box = np.broadcast_to(problem.query_box[query], (len(context), 4))
            context = context[box_iou(problem.det_box[context], query_box) <= self._settings.query_nms]
        context = context[: self._settings.k2 - 1]
        feature = problem.det_feature[context].astype(self._index.feature.dtype)
        if self._weighted:
            feature *= problem.det_score[context, None].astype(feature.dtype)
        return np.concatenate([problem.query_feature[query, None].astype(feature.dtype), feature])
