"""Search figures: mAP and top-k of every query in its gallery, in one pass over the similarities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from ..errors import ConfigError
from .context_matching import ContextMatching, ContextRescorer
from .galleries import Galleries
from .index import DetectionIndex
from .matching import Matches, match_targets
from .problem import SearchProblem
from .ragged import offsets_of, ranges
from .ranking import count_at_least, count_at_least_in_group, highest
from .reranking import KReciprocalRescorer, Reranking
from .results import TOP_K, SearchResult

_NUM_BEST = max(TOP_K)
# Similarities that are held at once, 16 MB of single precision.
_BLOCK_SIZE = 4_000_000
# A gallery of at least one in so many frames is large.
_LARGE_GALLERY = 8

Rescorer = Callable[[int, np.ndarray], np.ndarray]
"""New similarities (K,) of a query from its index and its similarities (K,), -inf outside its gallery."""


@dataclass(frozen=True)
class SearchOptions:
    """How similarities are made of features.

    Attributes:
        score_threshold: detections below this score are not searched.
        score_weighted: multiply similarities by the detection score (SeqNet's CWS).
        context_matching: context bipartite graph matching; None: without.
        reranking: k-reciprocal re-ranking; None: without.

    Raises:
        ConfigError: the threshold is not in 0..1, or context matching and re-ranking are both asked for.
    """

    score_threshold: float = 0.5
    score_weighted: bool = False
    context_matching: ContextMatching | None = None
    reranking: Reranking | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.score_threshold <= 1:
            raise ConfigError(f"score threshold {self.score_threshold} has to be in 0..1")
        if self.context_matching and self.reranking:
            raise ConfigError("context matching and re-ranking cannot both be on: each replaces the similarities")

    def describe(self) -> dict[str, Any]:
        """The options as a mapping fit for JSON."""
        return asdict(self)


def evaluate_search(
    problem: SearchProblem, options: SearchOptions | None = None, gallery: str | None = None
) -> SearchResult:
    """Search figures of one gallery of `problem` (by default its main one); see `evaluate_galleries`."""
    name = problem.gallery_name(gallery)
    return evaluate_galleries(problem, options, [name])[name]


def evaluate_galleries(
    problem: SearchProblem,
    options: SearchOptions | None = None,
    names: Sequence[str] | None = None,
    progress: bool = False,
) -> dict[str, SearchResult]:
    """Search figures of several galleries, with the similarities computed once.

    Definitions (SeqNet's `eval_search_prw` and `eval_search_cuhk`; docs/evaluation.md): in each frame that shows the
    person, the most similar detection that reaches the IoU threshold is the true positive. A query's average precision
    is the mean precision at the true positives times recall; detections of equal similarity count as one threshold.
    The rank of a true positive counts wrong detections of the same similarity before it. Queries without a match to
    find have no average precision and are left out of the means.

    Args:
        problem: with at least one gallery.
        options: None: the defaults.
        names: the galleries to evaluate; None: all.
        progress: show a progress bar on stderr.

    Returns:
        A result for each name.

    Raises:
        DatasetError: there is no gallery of that name.
    """
    options = options or SearchOptions()
    index = DetectionIndex.build(problem, options.score_threshold, options.score_weighted)
    rescore = _rescorer(problem, index, options)
    names = [problem.gallery_name(name) for name in (problem.galleries if names is None else names)]
    tables = {name: _Table(problem, problem.galleries[name], index) for name in names}
    query_feature = problem.query_feature.astype(index.feature.dtype, copy=False)
    num_queries = len(query_feature)
    block = max(1, _BLOCK_SIZE // max(1, len(index.detection)))
    with tqdm(total=num_queries, desc="search", unit="query", disable=not progress, leave=False) as bar:
        for first in range(0, num_queries, block):
            similarity = query_feature[first : first + block] @ index.feature.T
            for table in tables.values():
                table.add(first, similarity, rescore)
            bar.update(len(similarity))
    return {name: table.result(name) for name, table in tables.items()}


def _rescorer(problem: SearchProblem, index: DetectionIndex, options: SearchOptions) -> Rescorer | None:
    if options.context_matching:
        return ContextRescorer(problem, index, options.context_matching, options.score_weighted)
    if options.reranking:
        return KReciprocalRescorer(problem, index, options.reranking, options.score_weighted)
    return None


class _Table:
    """The figures of one gallery, filled block by block of queries."""

    def __init__(self, problem: SearchProblem, galleries: Galleries, index: DetectionIndex) -> None:
        num_queries = len(problem.query_frame)
        # A query without a feature has no direction to compare with: it finds nothing.
        self._searchable = problem.query_feature.any(axis=1)
        self._index, self._members = index, _Members(problem, galleries, index)
        self._matches = match_targets(galleries, index, self._searchable)
        self._target_count = galleries.target_count
        self._ap = np.where(galleries.target_count > 0, 0.0, np.nan)
        self._first_hit = np.zeros(num_queries, np.int64)
        self._found = np.zeros(num_queries, np.int64)
        self._best = np.full((num_queries, _NUM_BEST), -1, np.int64)
        self._best_similarity = np.zeros((num_queries, _NUM_BEST))
        self._best_correct = np.zeros((num_queries, _NUM_BEST), bool)

    def add(self, first: int, similarity: np.ndarray, rescore: Rescorer | None) -> None:
        """Ranks the queries `first`, `first + 1`, ... by their similarities (b, K) to all detections."""
        if rescore is not None:
            rows = enumerate(similarity, first)
            similarity = np.stack([rescore(query, self._members.masked(query, row)) for query, row in rows])
        offset, hit = _true_positives(self._matches, first, similarity)
        hit_row = np.repeat(np.arange(len(similarity)), np.diff(offset))
        hit_value = similarity[hit_row, hit]
        retrieved = np.zeros(len(hit), np.int64)
        best, best_value = [], []
        for row, own in enumerate(similarity):
            values, position = (own, None) if rescore is not None else self._members.select(first + row, own)
            hits = slice(offset[row], offset[row + 1])
            retrieved[hits] = count_at_least(values, hit_value[hits])
            candidates = highest(values, _NUM_BEST) if self._searchable[first + row] else np.zeros(0, np.int64)
            best_value.append(values[candidates])
            best.append(candidates if position is None else position[candidates])
        self._score(first, offset, retrieved, count_at_least_in_group(hit_row, hit_value))
        best_row = np.repeat(np.arange(len(similarity)), [len(candidates) for candidates in best])
        best = np.concatenate(best)
        num_detections = len(self._index.detection)
        correct = np.isin(best_row * num_detections + best, hit_row * num_detections + hit)
        self._keep_best(first + best_row, best, np.concatenate(best_value), correct)

    def _score(self, first: int, offset: np.ndarray, retrieved: np.ndarray, correct: np.ndarray) -> None:
        """Figures of b queries from `first` on.

        Args:
            offset: (b + 1,); the true positives of the i-th query are `offset[i], ..., offset[i + 1] - 1`.
            retrieved: (t,) detections of the gallery that are at least as similar as the true positive.
            correct: (t,) true positives among them.
        """
        count = np.diff(offset)
        found = np.flatnonzero(count)
        query, start = first + found, offset[:-1][found]
        if not len(found):
            return
        self._found[query] = count[found]
        self._ap[query] = np.add.reduceat(correct / retrieved, start) / self._target_count[query]
        self._first_hit[query] = 1 + np.minimum.reduceat(retrieved - correct, start)

    def _keep_best(self, query: np.ndarray, position: np.ndarray, value: np.ndarray, correct: np.ndarray) -> None:
        """Keeps the ten best of the candidates of each query (all (n,), sorted by query)."""
        # As for the rank: of equal similarities the wrong ones first; then by frame, then in stored order.
        order = np.lexsort((position, correct, -value, query))
        rank = np.arange(len(query)) - np.searchsorted(query, query)
        kept = rank < _NUM_BEST
        place, order = (query[kept], rank[kept]), order[kept]
        self._best[place] = self._index.detection[position[order]]
        self._best_similarity[place] = value[order]
        self._best_correct[place] = correct[order]

    def result(self, name: str) -> SearchResult:
        counted = self._target_count > 0
        hit, ap = self._first_hit[counted], self._ap[counted]
        top = [float(((hit > 0) & (hit <= k)).mean()) if len(hit) else float("nan") for k in TOP_K]
        return SearchResult(
            gallery=name,
            mAP=float(ap.mean()) if len(ap) else float("nan"),
            top1=top[0],
            top5=top[1],
            top10=top[2],
            ap=self._ap,
            first_hit=self._first_hit,
            target_count=self._target_count,
            found_count=self._found,
            best_detection=self._best,
            best_similarity=self._best_similarity,
            best_correct=self._best_correct,
        )


class _Members:
    """Which detections are in the gallery of a query."""

    def __init__(self, problem: SearchProblem, galleries: Galleries, index: DetectionIndex) -> None:
        self._galleries, self._index = galleries, index
        self._camera = problem.frame_camera[problem.query_frame] if galleries.other_cameras_only else None

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
        excluded = self._galleries.excluded_frame[query]
        if excluded >= 0:
            masked[index.start[excluded] : index.start[excluded] + index.count[excluded]] = -np.inf
        if self._camera is not None:
            masked[index.camera == self._camera[query]] = -np.inf
        return masked

    def _listed(self, query: int) -> np.ndarray | None:
        galleries = self._galleries
        if galleries.frame is None:
            return None
        return galleries.frame[galleries.frame_offset[query] : galleries.frame_offset[query + 1]]


def _true_positives(matches: Matches, first: int, similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The most similar match of each target that has one, the first stored of equal ones.

    Args:
        first: the query of the first row of the similarities (b, K).

    Returns:
        Offsets (b + 1,) and positions in a row: those of the i-th query are `positions[offset[i]:offset[i + 1]]`.
    """
    offset = matches.offset[first : first + len(similarity) + 1]
    match = slice(offset[0], offset[-1])
    query = np.repeat(np.arange(len(similarity)), np.diff(offset))
    detection, target = matches.detection[match], matches.target[match]
    order = np.lexsort((detection, -similarity[query, detection], target))
    kept = order[np.flatnonzero(np.diff(target[order], prepend=-1))]
    return offsets_of(np.bincount(query[kept], minlength=len(similarity))), detection[kept]
