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
    """Search metrics of one gallery, as fractions, and what each query contributes.

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

    def metrics(self, scale: float = 1.0) -> dict[str, float]:
        """mAP, top1, top5 and top10, times `scale`."""
        return {name: scale * getattr(self, name) for name in ("mAP", "top1", "top5", "top10")}


def finite_or_none(value: float) -> float | None:
    """The value, or None (JSON null) for NaN."""
    return None if math.isnan(value) else float(value)


_NUM_BEST = max(TOP_K)
# Similarities that are held at once, 16 MB of single precision.
_BLOCK_SIZE = 4_000_000

Rescorer = Callable[[int, np.ndarray], np.ndarray]
"""New similarities (K,) of a query from its index and its similarities (K,), -inf outside its gallery."""


@dataclass(frozen=True)
class SearchOptions:
    """Options of a search: how similarities are made of features.

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
        check_value("TEST.PERSON_SEARCH.SCORE_THRESHOLD", self.score_threshold)
        if self.context_matching and self.reranking:
            raise ConfigError("context matching and re-ranking cannot both be on: each replaces the similarities")

    def describe(self) -> dict[str, Any]:
        """The options as a mapping fit for JSON."""
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
    # A query without a feature has no direction to compare with: it finds nothing.
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
    """The metrics of one gallery, filled block by block of queries."""

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
        """Metrics of the queries `first`, `first + 1`, ... from their similarities (b, K)."""
        members: Members | None = self._members
        if rescore is not None:
            rows = enumerate(similarity, first)
            # What is outside a gallery is -inf from here on.
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


def true_positives(matches: Matches, first: int, similarity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The most similar match of each target that has one, the first stored of equal ones.

    Args:
        first: the query of the first row of the similarities.
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
    """Detection metrics as fractions, NaN where there is no box to find, and the counts behind them.

    Attributes:
        recall: share of the annotated boxes that are found.
        AP: average precision times recall.
        recall_labelled: recall of the boxes with an identity alone.
        num_boxes: annotated boxes.
        num_labelled: those of them with an identity.
        num_detections: detections that reach the score threshold.
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
    """Detection metrics as SeqNet's `eval_detection` defines them.

    A box is found by a detection if their IoU reaches the threshold, no other box of the frame has a higher IoU with
    the detection and no other detection a higher one with the box (of equal ones the first stored counts). Equal
    scores are one threshold of the precision-recall curve. Detections in frames without boxes are false positives.

    Args:
        problem: its annotations and detections; queries and galleries play no part.
        score_threshold: detections below it are dropped.
        iou_threshold: least IoU.
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
    """The precision-recall curve of detection, from the highest score down, as fractions.

    Attributes:
        score: (T,) float64, the distinct scores, falling; each is a threshold.
        recall: (T,) float64, share of the annotated boxes that are found by detections of that score or more.
        precision: (T,) float64, share of those detections that find a box.
    """

    score: np.ndarray
    recall: np.ndarray
    precision: np.ndarray

    @property
    def area(self) -> float:
        """Area below the curve, each precision reaching back to the point before: `DetectionResult.AP`."""
        return float((np.diff(self.recall, prepend=0.0) * self.precision).sum())


def precision_recall(
    problem: SearchProblem, score_threshold: float = 0.5, iou_threshold: float = 0.5
) -> PrecisionRecall:
    """The curve whose area is the AP of `evaluate_detection`, which has the definitions and the arguments.

    Returns:
        A point for each distinct score; none where there is no detection or no box to find.
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
    # In single precision, as the reference stores them: an IoU within rounding of the threshold reaches it.
    iou = box_iou(problem.gt_box[boxes[box]], index.box[detection]).astype(np.float32)
    best = _first_best(box, iou, detection) & _first_best(detection, iou, box)
    return detection[best & (iou >= iou_threshold)]


def _first_best(group: np.ndarray, value: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Marks the element with the highest value of each group (all (n,)); of equal ones the one first in `order`."""
    ranked = np.lexsort((order, -value, group))
    best = np.zeros(len(group), bool)
    best[ranked[np.flatnonzero(np.diff(group[ranked], prepend=-1))]] = True
    return best


def _average_precision(score: np.ndarray, score_found: np.ndarray, num_boxes: int) -> float:
    if not num_boxes:
        return float("nan")
    # Precision at the threshold of each true positive; summing over all boxes scales the mean by recall.
    precision = count_at_least(score_found, score_found) / count_at_least(score, score_found)
    return float(precision.sum() / num_boxes)
