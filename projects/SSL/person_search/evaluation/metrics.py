"""Metrics of search and detection: mAP, top-k, average precision and recall."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from ..errors import ConfigError
from ..values import check_value
from .detections import DetectionIndex, Matches, Members, box_iou, match_targets
from .problem import Galleries, SearchProblem, offsets_of, pairs
from .ranking import Found, count_at_least, count_at_least_in_group, rank
from .rescoring import ContextMatching, ContextRescorer, KReciprocalRescorer, Reranking

TOP_K = (1, 5, 10)


@dataclass(frozen=True)
class SearchResult:
    """Search metrics of a gallery, as fractions, and the results of each query.

    Attributes:
        gallery: name of the gallery.
        mAP, top1, top5, top10: means over the queries with a match; NaN without such queries.
        ap: (Q,) float64 average precision; NaN for a query without a match.
        first_hit: (Q,) int64, rank of the first correct detection, from 1; 0 if none was found.
        target_count: (Q,) int64, number of matches.
        found_count: (Q,) int64, number of matches found at any rank.
        best_detection: (Q, 10) int64, indices of the ten most similar detections in the problem; -1 if there are fewer.
        best_similarity: (Q, 10) float64; 0 if there are fewer.
        best_correct: (Q, 10) bool, whether the detection is a true positive.
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
        """Number of queries with a match, which the means are over."""
        return int(np.count_nonzero(self.target_count))

    def metrics(self, scale: float = 1.0) -> dict[str, float]:
        """mAP, top1, top5 and top10, times `scale`."""
        return {name: scale * getattr(self, name) for name in ("mAP", "top1", "top5", "top10")}


def finite_or_none(value: float) -> float | None:
    """Value, or None (JSON null) for NaN."""
    return None if math.isnan(value) else float(value)


_NUM_BEST = max(TOP_K)
# Number of similarities held at once, 16 MB in single precision.
_BLOCK_SIZE = 4_000_000

Rescorer = Callable[[int, np.ndarray], np.ndarray]
"""New similarities (K,) of a query from its index and similarities (K,), which are -inf outside its gallery."""


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search.

    Attributes:
        score_threshold: minimum score of the detections to search.
        score_weighted: whether to multiply similarities by the detection score (SeqNet's CWS).
        context_matching: context bipartite graph matching; None for none.
        reranking: k-reciprocal re-ranking; None for none.

    Raises:
        ConfigError: the threshold is not in 0..1, or context matching and re-ranking are combined.
    """

    score_threshold: float = 0.5
    score_weighted: bool = False
    context_matching: ContextMatching | None = None
    reranking: Reranking | None = None

    def __post_init__(self) -> None:
        check_value("TEST.PERSON_SEARCH.SCORE_THRESHOLD", self.score_threshold)
        if self.context_matching and self.reranking:
            raise ConfigError("context matching and re-ranking cannot both be on: each replaces the similarities")

    def describe(self) -> dict[str, Any]:
        """Options as a mapping in JSON types."""
        return asdict(self)


def evaluate_search(
    problem: SearchProblem, options: SearchOptions | None = None, gallery: str | None = None
) -> SearchResult:
    """Search metrics of one gallery of `problem` (by default its main one); see `evaluate_galleries`."""
    name = problem.gallery_name(gallery)
    return evaluate_galleries(problem, options, [name])[name]


def evaluate_galleries(
    problem: SearchProblem,
    options: SearchOptions | None = None,
    names: Sequence[str] | None = None,
    progress: bool = False,
) -> dict[str, SearchResult]:
    """Search metrics of several galleries, with the similarities computed once.

    Definitions (SeqNet's `eval_search_prw` and `eval_search_cuhk`; docs/evaluation.md): in each frame that shows the
    person, the most similar detection that reaches the IoU threshold is the true positive. Average precision is the
    mean precision at the true positives times recall; equal similarities are one threshold. The rank of a true positive
    counts wrong detections of equal similarity before it. Queries without a match have no average precision and are
    excluded from the means.

    Args:
        problem: search problem with at least one gallery.
        options: search options; None for the defaults.
        names: galleries to evaluate; None for all.
        progress: whether to show a progress bar on stderr.

    Returns:
        results by gallery.

    Raises:
        DatasetError: there is no gallery of that name.
    """
    options = options or SearchOptions()
    index = DetectionIndex.build(problem, options.score_threshold, options.score_weighted)
    rescore = _rescorer(problem, index, options)
    names = [problem.gallery_name(name) for name in (problem.galleries if names is None else names)]
    # A query without a feature finds nothing.
    searchable = np.asarray(problem.query_feature.any(axis=1))
    tables = {name: _Table(problem, problem.galleries[name], index, searchable) for name in names}
    query_feature = problem.query_feature.astype(index.feature.dtype, copy=False)
    num_queries = len(query_feature)
    block = max(1, _BLOCK_SIZE // max(1, len(index.detection)))
    with tqdm(total=num_queries, desc="search", unit="query", disable=not progress, leave=False) as bar:
        for first in range(0, num_queries, block):
            similarity = query_feature[first : first + block] @ index.feature.T
            for table in tables.values():
                table.rank(first, similarity, rescore)
            bar.update(len(similarity))
    return {name: table.result(name) for name, table in tables.items()}


def _rescorer(problem: SearchProblem, index: DetectionIndex, options: SearchOptions) -> Rescorer | None:
    if options.context_matching:
        return ContextRescorer(problem, index, options.context_matching)
    if options.reranking:
        return KReciprocalRescorer(problem, index, options.reranking, options.score_weighted)
    return None


class _Table:
    """Metrics of a gallery, filled by blocks of queries."""

    def __init__(
        self, problem: SearchProblem, galleries: Galleries, index: DetectionIndex, searchable: np.ndarray
    ) -> None:
        num_queries = len(problem.query_frame)
        self._index, self._members = index, Members(problem, galleries, index)
        self._matches, self._searchable = match_targets(galleries, index, searchable), searchable
        self._target_count = galleries.target_count
        self._ap = np.where(galleries.target_count > 0, 0.0, np.nan)
        self._first_hit = np.zeros(num_queries, np.int64)
        self._found = np.zeros(num_queries, np.int64)
        self._best = np.full((num_queries, _NUM_BEST), -1, np.int64)
        self._best_similarity = np.zeros((num_queries, _NUM_BEST))
        self._best_correct = np.zeros((num_queries, _NUM_BEST), bool)

    def rank(self, first: int, similarity: np.ndarray, rescore: Rescorer | None) -> None:
        """Computes the metrics of the queries `first`, `first + 1`, ... from their similarities (b, K)."""
        members: Members | None = self._members
        if rescore is not None:
            rows = enumerate(similarity, first)
            # Detections outside the gallery are -inf from here on.
            similarity = np.stack([rescore(query, self._members.masked(query, row)) for query, row in rows])
            members = None
        offset, position = true_positives(self._matches, first, similarity)
        row = np.repeat(np.arange(len(similarity)), np.diff(offset))
        found = Found(members, first, offset, position, similarity[row, position])
        ranks = rank(similarity, found, self._searchable[first : first + len(similarity)], _NUM_BEST)
        self._score(first, offset, ranks.retrieved, count_at_least_in_group(row, found.value))
        num_detections = len(self._index.detection)
        place, hit = ranks.best_row * num_detections + ranks.best_position, row * num_detections + position
        self._keep_best(first + ranks.best_row, ranks.best_position, ranks.best_value, np.isin(place, hit))

    def _score(self, first: int, offset: np.ndarray, retrieved: np.ndarray, correct: np.ndarray) -> None:
        """Computes the metrics of b queries from `first` on.

        Args:
            first: first query.
            offset: (b + 1,); true positives of the i-th query are `offset[i], ..., offset[i + 1] - 1`.
            retrieved: (t,) number of detections of the gallery at least as similar as the true positive.
            correct: (t,) number of true positives among them.
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
        """Keeps the ten best candidates of each query (all (n,), sorted by query)."""
        # As for the rank: among equal similarities wrong ones first, then by frame, then in stored order.
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


def true_positives(matches: Matches, first: int, similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Most similar match of each target that has any, the first stored of equal ones.

    Args:
        matches: matches of all queries.
        first: query of the first row of the similarities.
        similarity: (b, K).

    Returns:
        Offsets (b + 1,) and positions in a row: those of the i-th query are `positions[offset[i]:offset[i + 1]]`.
    """
    number = len(similarity)
    offset = matches.offset[first : first + number + 1]
    match = slice(offset[0], offset[-1])
    query = np.repeat(np.arange(number), np.diff(offset))
    detection, target = matches.detection[match], matches.target[match]
    order = np.lexsort((detection, -similarity[query, detection], target))
    kept = order[np.flatnonzero(np.diff(target[order], prepend=-1))]
    return offsets_of(np.bincount(query[kept], minlength=number)), detection[kept]


@dataclass(frozen=True)
class DetectionResult:
    """Detection metrics as fractions, NaN without annotated boxes, and the counts behind them.

    Attributes:
        recall: fraction of the annotated boxes that are found.
        AP: average precision times recall.
        recall_labelled: recall of the boxes with an identity.
        num_boxes: number of annotated boxes.
        num_labelled: number of boxes with an identity.
        num_detections: number of detections that reach the score threshold.
    """

    recall: float
    AP: float
    recall_labelled: float
    num_boxes: int
    num_labelled: int
    num_detections: int


def evaluate_detection(
    problem: SearchProblem, score_threshold: float = 0.5, iou_threshold: float = 0.5
) -> DetectionResult:
    """Detection metrics as defined by SeqNet's `eval_detection`.

    A box is found by a detection if their IoU reaches the threshold, no other box of the frame has a higher IoU with
    the detection, and no other detection a higher one with the box (among equal ones, the first counts). Equal scores
    are one threshold of the precision-recall curve. Detections in frames without boxes are false positives.

    Args:
        problem: search problem, of which annotations and detections are used.
        score_threshold: minimum score of a detection.
        iou_threshold: minimum IoU.
    """
    index = DetectionIndex.build(problem, score_threshold)
    found = _found(problem, index, np.arange(len(problem.gt_frame)), iou_threshold)
    labelled = np.flatnonzero(problem.gt_person_id >= 0)
    found_labelled = _found(problem, index, labelled, iou_threshold)
    num_boxes = len(problem.gt_frame)
    return DetectionResult(
        recall=len(found) / num_boxes if num_boxes else float("nan"),
        AP=_average_precision(index.score, index.score[found], num_boxes),
        recall_labelled=len(found_labelled) / len(labelled) if len(labelled) else float("nan"),
        num_boxes=num_boxes,
        num_labelled=len(labelled),
        num_detections=len(index.detection),
    )


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision-recall curve of detection, from the highest score down, as fractions.

    Attributes:
        score: (T,) float64, distinct scores in descending order, each a threshold.
        recall: (T,) float64, fraction of the annotated boxes found by detections of at least that score.
        precision: (T,) float64, fraction of these detections that find a box.
    """

    score: np.ndarray
    recall: np.ndarray
    precision: np.ndarray

    @property
    def area(self) -> float:
        """Area below the curve, with each precision extended back to the previous point: `DetectionResult.AP`."""
        return float((np.diff(self.recall, prepend=0.0) * self.precision).sum())


def precision_recall(
    problem: SearchProblem, score_threshold: float = 0.5, iou_threshold: float = 0.5
) -> PrecisionRecall:
    """Curve whose area is the AP of `evaluate_detection`; for definitions and arguments see there.

    Returns:
        A point for each distinct score; none without detections or annotated boxes.
    """
    index = DetectionIndex.build(problem, score_threshold)
    num_boxes = len(problem.gt_frame)
    if not num_boxes:
        return PrecisionRecall(np.zeros(0), np.zeros(0), np.zeros(0))
    hit = np.zeros(len(index.detection), bool)
    hit[_found(problem, index, np.arange(num_boxes), iou_threshold)] = True
    score, group = np.unique(index.score, return_inverse=True)
    found = np.bincount(group, hit, len(score))[::-1].cumsum()
    shown = np.bincount(group, minlength=len(score))[::-1].cumsum()
    return PrecisionRecall(score[::-1].astype(np.float64), found / num_boxes, found / shown)


def _found(problem: SearchProblem, index: DetectionIndex, boxes: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Positions (in `index`) of the true positives among the annotated `boxes` (n,)."""
    frame = problem.gt_frame[boxes]
    box, detection = pairs(index.start[frame], index.count[frame])
    # In single precision, as in the reference: an IoU within rounding of the threshold reaches it.
    iou = box_iou(problem.gt_box[boxes[box]], index.box[detection]).astype(np.float32)
    best = _first_best(box, iou, detection) & _first_best(detection, iou, box)
    return detection[best & (iou >= iou_threshold)]


def _first_best(group: np.ndarray, value: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Mask of the element with the highest value of each group (all (n,)); the first in `order` among equal ones."""
    ranked = np.lexsort((order, -value, group))
    best = np.zeros(len(group), bool)
    best[ranked[np.flatnonzero(np.diff(group[ranked], prepend=-1))]] = True
    return best


def _average_precision(score: np.ndarray, score_found: np.ndarray, num_boxes: int) -> float:
    if not num_boxes:
        return float("nan")
    # Precision at the threshold of each true positive; dividing by all boxes scales the mean by recall.
    precision = count_at_least(score_found, score_found) / count_at_least(score, score_found)
    return float(precision.sum() / num_boxes)
