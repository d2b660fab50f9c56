"""Rescoring of the best results: CBGM (SeqNet) and k-reciprocal re-ranking (Zhong et al., CVPR 2017)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from ..errors import ConfigError
from ..values import check_value
from .detections import DetectionIndex, box_iou
from .problem import SearchProblem, offsets_of
from .ranking import highest


@dataclass(frozen=True)
class ContextMatching:
    """Settings of CBGM.

    Attributes:
        k1: number of best gallery detections whose frames are used.
        k2: number of persons on the query's side: the query itself, then the first detections of its frame.
        query_nms: IoU with the query box above which detections of the query's frame are no context, since they show
            the query itself: if the assignment gave the match to them, the query would be left with a distractor.
            SeqNet's model drops them by the NMS of its re-id head, at 0.5; 1 keeps all, as its evaluation code alone
            does.

    Raises:
        ConfigError: a number is out of range.
    """

    k1: int = 30
    k2: int = 4
    query_nms: float = 1.0

    def __post_init__(self) -> None:
        for key, value in (("K1", self.k1), ("K2", self.k2), ("QUERY_NMS", self.query_nms)):
            check_value(f"TEST.PERSON_SEARCH.CBGM.{key}", value)


class ContextRescorer:
    """Rescoring that raises the similarity of the detection that CBGM assigns the query to.

    In each frame used, the query and its context persons are assigned to the detections of the frame so that the sum of
    similarities is maximal. The detection assigned to the query then gets the highest similarity of all assigned pairs
    (as in SeqNet's code; the paper does not say). Nothing changes if no detection is left for the query.

    Features of the gallery are multiplied by their scores if the search is score weighted; those of the query and its
    context never are (SeqNet disables the weighting for the frames of the queries).

    Args:
        problem: search problem; context persons are all detections of the query's frame, in stored order, of any score.
        index: detections to search.
        settings: k1 and k2.
    """

    def __init__(self, problem: SearchProblem, index: DetectionIndex, settings: ContextMatching) -> None:
        self._problem, self._index, self._settings = problem, index, settings
        self._by_frame = np.argsort(problem.det_frame, kind="stable")
        self._offset = offsets_of(np.bincount(problem.det_frame, minlength=len(problem.frame_name)))

    def __call__(self, query: int, similarity: np.ndarray) -> np.ndarray:
        """New similarities (K,) of a query from its similarities (K,), which are -inf outside its gallery."""
        index, settings = self._index, self._settings
        best = highest(similarity, settings.k1)
        best = best[np.argsort(-similarity[best], kind="stable")][: settings.k1]
        persons = self._persons(query)
        rescored = similarity.copy()
        for frame in np.unique(index.frame[best]):
            seen = slice(index.start[frame], index.start[frame] + index.count[frame])
            weight = persons @ index.feature[seen].T
            person, detection = linear_sum_assignment(weight, maximize=True)
            if person[0] == 0:  # persons are returned in ascending order
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
        return np.concatenate([problem.query_feature[query, None].astype(feature.dtype), feature])


@dataclass(frozen=True)
class Reranking:
    """Settings of re-ranking.

    Attributes:
        k1: number of neighbors of the k-reciprocal encoding.
        k2: number of neighbors of the local query expansion; 1 for none.
        original_weight: weight of the original distance in the final one (lambda of the paper), 0 to 1.
        shortlist: number of best detections of a query to re-rank; the others follow in their original order. Every
            query has its own neighbor graph, over its own gallery, whose size this limits.

    Raises:
        ConfigError: a number is out of range.
    """

    k1: int = 20
    k2: int = 6
    original_weight: float = 0.3
    shortlist: int = 500

    def __post_init__(self) -> None:
        for key, value in (("K1", self.k1), ("K2", self.k2), ("LAMBDA", self.original_weight)):
            check_value(f"TEST.PERSON_SEARCH.RERANKING.{key}", value)
        if self.shortlist < 1:
            raise ConfigError(f"re-ranking: shortlist is {self.shortlist}, expected 1 or more")


def k_reciprocal_distance(feature: np.ndarray, settings: Reranking) -> np.ndarray:
    """Distances of the first feature to all others after k-reciprocal re-ranking.

    Args:
        feature: (n, d) floating point; the query's first, then those of the gallery.
        settings: settings, of which `shortlist` is ignored.

    Returns:
        (n - 1,) in 0..1.
    """
    distance, rank = _neighbors(feature, max(settings.k1 + 1, settings.k2))
    reciprocal = _reciprocal(rank, settings.k1)
    near = _reciprocal(rank, int(np.around(settings.k1 / 2)))
    # A neighbor adds its own closer neighbors if more than two thirds of them are included already.
    as_float = near.astype(feature.dtype)
    trusted = reciprocal & (3 * (reciprocal.astype(feature.dtype) @ as_float.T) > 2 * near.sum(axis=1))
    expanded = reciprocal | (trusted.astype(feature.dtype) @ as_float > 0)
    encoding = np.exp(-distance) * expanded
    encoding /= encoding.sum(axis=1, keepdims=True)
    # Columns where the query's encoding is 0 share nothing with it.
    shared_with = encoding[rank[0, : settings.k2]].any(axis=0)
    encoding = encoding[:, shared_with][rank[:, : settings.k2]].mean(axis=1)
    shared_mass = np.minimum(encoding[0], encoding).sum(axis=1)
    jaccard = 1 - shared_mass / (2 - shared_mass)
    return ((1 - settings.original_weight) * jaccard + settings.original_weight * distance[0])[1:]


class KReciprocalRescorer:
    """Rescoring that ranks the re-ranked shortlist before all other detections of a query's gallery.

    The similarity of a re-ranked detection is 1 - distance, times its score if the search is score weighted; the
    neighbor graph uses unweighted features. All others keep their order, at similarities of -1 and below.

    Args:
        problem: search problem with the features.
        index: detections to search.
        settings: see `Reranking`.
        score_weighted: whether similarities are multiplied by the detection score.
    """

    def __init__(
        self, problem: SearchProblem, index: DetectionIndex, settings: Reranking, score_weighted: bool
    ) -> None:
        self._problem, self._index, self._settings, self._weighted = problem, index, settings, score_weighted

    def __call__(self, query: int, similarity: np.ndarray) -> np.ndarray:
        """New similarities (K,) of a query from its similarities (K,), which are -inf outside its gallery."""
        best = highest(similarity, self._settings.shortlist)
        rescored = similarity.copy()
        rescored[best] = -np.inf
        highest_other = rescored.max(initial=-np.inf)
        if highest_other > -np.inf:
            rescored -= highest_other + 1
        gallery = self._problem.det_feature[self._index.detection[best]].astype(rescored.dtype)
        feature = np.concatenate([self._problem.query_feature[query, None].astype(rescored.dtype), gallery])
        rescored[best] = 1 - k_reciprocal_distance(feature, self._settings)
        if self._weighted:
            rescored[best] *= self._index.score[best]
        return rescored


def _neighbors(feature: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared Euclidean distances (n, n), each row divided by its maximum, and the nearest (n, <= count) of each row.

    Every row is its own nearest neighbor.
    """
    count = min(count, len(feature))
    square = (feature * feature).sum(axis=1)
    distance = np.maximum(square[:, None] + square - 2 * (feature @ feature.T), 0)
    distance /= np.maximum(distance.max(axis=1, keepdims=True), np.finfo(feature.dtype).tiny)
    np.fill_diagonal(distance, -1)
    nearest = np.sort(np.argpartition(distance, count - 1, axis=1)[:, :count], axis=1)
    order = np.argsort(np.take_along_axis(distance, nearest, axis=1), axis=1, kind="stable")
    np.fill_diagonal(distance, 0)
    return distance, np.take_along_axis(nearest, order, axis=1)


def _reciprocal(rank: np.ndarray, k: int) -> np.ndarray:
    """Mask (n, n) bool of pairs that are among the k + 1 nearest of each other."""
    nearest = np.zeros((len(rank), len(rank)), bool)
    np.put_along_axis(nearest, rank[:, : k + 1], True, axis=1)
    return nearest & nearest.T
