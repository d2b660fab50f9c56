"""Curves of a search: top-k over k, sizes of the galleries, and how similar matches and others are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .index import DetectionIndex
from .matching import match_targets
from .members import Members
from .metrics import SearchOptions, true_positives
from .problem import SearchProblem
from .results import SearchResult
from .similarities import ArraySimilarities


def cumulative_matches(result: SearchResult, ranks: int = 20) -> np.ndarray:
    """The cumulative match characteristic: top-1, top-2, ... of the queries with a match to find.

    Returns:
        (ranks,) float64 fractions; NaN where no query has a match to find.
    """
    hit = result.first_hit[result.target_count > 0]
    if not len(hit):
        return np.full(ranks, np.nan)
    return np.bincount(hit, minlength=ranks + 1)[1 : ranks + 1].cumsum() / len(hit)


def gallery_sizes(problem: SearchProblem, gallery: str | None = None) -> np.ndarray:
    """How many frames are searched for each query, (Q,) int64, in a gallery, by default the main one."""
    galleries = problem.galleries[problem.gallery_name(gallery)]
    if galleries.frame_offset is not None:
        return np.diff(galleries.frame_offset)
    num_frames = len(problem.frame_name)
    if galleries.other_cameras_only:
        # The excluded frame is of the query's own camera.
        camera, count = np.unique(problem.frame_camera, return_counts=True)
        return num_frames - count[np.searchsorted(camera, problem.frame_camera[problem.query_frame])]
    return num_frames - (galleries.excluded_frame >= 0).astype(np.int64)


@dataclass(frozen=True)
class SimilarityHistogram:
    """How similar queries are to their matches and to all other detections of their galleries.

    Attributes:
        edges: (n + 1,) float64, bounds of the bins, from -1 to 1.
        matches: (n,) int64, in each bin the true positives.
        others: (n,) int64, in each bin the other detections.
        queries: how many queries were looked at.
    """

    edges: np.ndarray
    matches: np.ndarray
    others: np.ndarray
    queries: int


def similarity_histogram(
    problem: SearchProblem,
    options: SearchOptions,
    gallery: str | None = None,
    bins: int = 100,
    max_queries: int = 500,
) -> SimilarityHistogram:
    """Counts similarities as the search takes them, before context matching or re-ranking replaces them.

    Args:
        problem: with at least one gallery.
        options: its score threshold and score weighting are used.
        gallery: None: the main one.
        bins: of equal width from -1 to 1; what rounding puts beyond an end counts in the last bin.
        max_queries: where there are more with a feature, so many of them, evenly spaced, stand for all.
    """
    galleries = problem.galleries[problem.gallery_name(gallery)]
    index = DetectionIndex.build(problem, options.score_threshold, options.score_weighted)
    members = Members(problem, galleries, index)
    searchable = problem.query_feature.any(axis=1)
    matches = match_targets(galleries, index, searchable)
    queries = np.flatnonzero(searchable)
    if len(queries) > max_queries:
        queries = queries[np.linspace(0, len(queries) - 1, max_queries).round().astype(np.int64)]
    feature = problem.query_feature.astype(index.feature.dtype, copy=False)
    counts = np.zeros((2, bins), np.int64)
    for query in queries.tolist():
        similarity = feature[query : query + 1] @ index.feature.T
        _, hit = true_positives(matches, query, ArraySimilarities(similarity))
        row = members.masked(query, similarity[0])
        counts[0] += _counted(row[hit], bins)
        row[hit] = -np.inf
        counts[1] += _counted(row[row > -np.inf], bins)
    return SimilarityHistogram(np.linspace(-1, 1, bins + 1), counts[0], counts[1], len(queries))


def _counted(value: np.ndarray, bins: int) -> np.ndarray:
    place = ((value + 1) * (bins / 2)).astype(np.int64)
    return np.bincount(np.clip(place, 0, bins - 1), minlength=bins)
