"""k-reciprocal re-ranking (Zhong et al., CVPR 2017) of the best results of a query."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import ConfigError
from .index import DetectionIndex
from .problem import SearchProblem
from .ranking import highest


@dataclass(frozen=True)
class Reranking:
    """Settings of the re-ranking.

    Attributes:
        k1: neighbours of the k-reciprocal encoding.
        k2: neighbours of the local query expansion; 1 leaves it out.
        original_weight: share of the original distance in the final one (lambda of the paper), 0 to 1.
        shortlist: so many best detections of a query are re-ranked, the others follow in their old order. Every
            query gets its own neighbour graph, over its own gallery alone, whose size this bounds.

    Raises:
        ConfigError: a number is out of its range.
    """

    k1: int = 20
    k2: int = 6
    original_weight: float = 0.3
    shortlist: int = 500

    def __post_init__(self) -> None:
        if min(self.k1, self.k2, self.shortlist) < 1:
            raise ConfigError(
                f"re-ranking: k1 = {self.k1}, k2 = {self.k2} and shortlist = {self.shortlist} have to be at least 1"
            )
        if not 0 <= self.original_weight <= 1:
            raise ConfigError(f"re-ranking: original weight (lambda) = {self.original_weight} has to be in 0..1")


def k_reciprocal_distance(feature: np.ndarray, settings: Reranking) -> np.ndarray:
    """Distances of the first feature to all others after k-reciprocal re-ranking.

    Args:
        feature: (n, d) floating point; the first row is the query's, the others are the gallery's.
        settings: `shortlist` plays no part.

    Returns:
        (n - 1,) in 0..1.
    """
    distance, rank = _neighbours(feature, max(settings.k1 + 1, settings.k2))
    reciprocal = _reciprocal(rank, settings.k1)
    near = _reciprocal(rank, int(np.around(settings.k1 / 2)))
    # A neighbour brings its own nearer neighbours along if more than two thirds of them are there already.
    as_float = near.astype(feature.dtype)
    trusted = reciprocal & (3 * (reciprocal.astype(feature.dtype) @ as_float.T) > 2 * near.sum(axis=1))
    expanded = reciprocal | (trusted.astype(feature.dtype) @ as_float > 0)
    encoding = np.exp(-distance) * expanded
    encoding /= encoding.sum(axis=1, keepdims=True)
    # Where the query's encoding is 0 nothing is shared with it.
    shared_with = encoding[rank[0, : settings.k2]].any(axis=0)
    encoding = encoding[:, shared_with][rank[:, : settings.k2]].mean(axis=1)
    shared_mass = np.minimum(encoding[0], encoding).sum(axis=1)
    jaccard = 1 - shared_mass / (2 - shared_mass)
    return ((1 - settings.original_weight) * jaccard + settings.original_weight * distance[0])[1:]


class KReciprocalRescorer:
    """Puts the re-ranked shortlist before all other detections of a query's gallery.

    The similarity of a re-ranked detection is 1 - distance, times its score where the search is score weighted; the
    neighbour graph is built from unweighted features. All others keep their order, at similarities of -1 and less.

    Args:
        problem: gives the features.
        index: the gallery.
        settings: see `Reranking`.
        score_weighted: whether similarities are multiplied by the detection score.
    """

    def __init__(
        self, problem: SearchProblem, index: DetectionIndex, settings: Reranking, score_weighted: bool
    ) -> None:
        self._problem, self._index, self._settings, self._weighted = problem, index, settings, score_weighted

    def __call__(self, query: int, similarity: np.ndarray) -> np.ndarray:
        """New similarities (K,) of one query from its similarities (K,), -inf outside its gallery."""
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


def _neighbours(feature: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Squared Euclidean distances (n, n), each row divided by its greatest, and the nearest (n, <= count) of each row.

    Everybody is its own nearest.
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
    """(n, n) bool: whether i and j are among the k + 1 nearest of one another."""
    nearest = np.zeros((len(rank), len(rank)), bool)
    np.put_along_axis(nearest, rank[:, : k + 1], True, axis=1)
    return nearest & nearest.T
