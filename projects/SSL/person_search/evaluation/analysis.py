"""Analysis of search results: breakdowns, curves, single queries, and the protocol in words."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import DatasetError
from .detections import DetectionIndex, Members, box_iou, match_targets
from .metrics import PrecisionRecall, SearchOptions, SearchResult, finite_or_none, precision_recall, true_positives
from .problem import SearchProblem
from .storage import read_json

HEIGHT_EDGES = (32, 48, 64, 96, 128, 192, 256, 384, 512, 768)
"""Bounds of the height bins in pixels, in half octaves: a bin spans a factor of about 1.4."""


@dataclass(frozen=True)
class Part:
    """Metrics of a subset of the queries, as fractions.

    Attributes:
        queries: number of queries with a match, which the means are over.
        mAP, top1: means; NaN without such queries.
    """

    queries: int
    mAP: float
    top1: float


def metrics_of(result: SearchResult, chosen: np.ndarray) -> Part:
    """Metrics of the queries selected by `chosen` (Q,) bool; those without a match are ignored."""
    counted = chosen & (result.target_count > 0)
    if not counted.any():
        return Part(0, float("nan"), float("nan"))
    return Part(int(counted.sum()), float(result.ap[counted].mean()), float((result.first_hit[counted] == 1).mean()))


def by_camera(problem: SearchProblem, result: SearchResult) -> dict[int, Part]:
    """Metrics by camera of the query's frame, in ascending order; empty if cameras are unknown."""
    if problem.frame_camera is None:
        return {}
    camera = problem.frame_camera[problem.query_frame]
    return {int(number): metrics_of(result, camera == number) for number in np.unique(camera)}


def by_height(
    problem: SearchProblem, result: SearchResult, edges: Sequence[float] = HEIGHT_EDGES
) -> dict[tuple[float, float], Part]:
    """Metrics by the height of the query box.

    Args:
        problem: search problem, with query boxes in pixels of the original frame.
        result: result of one of its galleries.
        edges: ascending bounds in pixels; a bin includes its lower bound, but not its upper one.

    Returns:
        metrics by (lower, upper), in ascending order, for each bin with a query; the first bin starts at 0, the last
        ends at infinity.
    """
    height = problem.query_box[:, 3] - problem.query_box[:, 1]
    bounds = (0.0, *edges, float("inf"))
    place = np.searchsorted(edges, height, "right")
    return {(bounds[i], bounds[i + 1]): metrics_of(result, place == i) for i in np.unique(place).tolist()}


def cumulative_matches(result: SearchResult, ranks: int = 20) -> np.ndarray:
    """Cumulative match characteristic: top-1, top-2, ... of the queries with a match.

    Returns:
        (ranks,) float64 fractions; NaN without such queries.
    """
    hit = result.first_hit[result.target_count > 0]
    if not len(hit):
        return np.full(ranks, np.nan)
    return np.bincount(hit, minlength=ranks + 1)[1 : ranks + 1].cumsum() / len(hit)


def gallery_sizes(problem: SearchProblem, gallery: str | None = None) -> np.ndarray:
    """Number of frames to search for each query, (Q,) int64, in a gallery, by default the main one."""
    galleries = problem.galleries[problem.gallery_name(gallery)]
    if galleries.frame_offset is not None:
        return np.diff(galleries.frame_offset)
    num_frames = len(problem.frame_name)
    if galleries.other_cameras_only:
        assert problem.frame_camera is not None  # checked by `SearchProblem`
        # The excluded frame is of the query's own camera.
        camera, count = np.unique(problem.frame_camera, return_counts=True)
        return num_frames - count[np.searchsorted(camera, problem.frame_camera[problem.query_frame])]
    assert galleries.excluded_frame is not None  # as no frames are listed
    return num_frames - np.asarray(galleries.excluded_frame >= 0, np.int64)


@dataclass(frozen=True)
class SimilarityHistogram:
    """Histograms of the similarities of queries to their matches and to all other detections of their galleries.

    Attributes:
        edges: (n + 1,) float64, bounds of the bins, from -1 to 1.
        matches: (n,) int64, number of true positives per bin.
        others: (n,) int64, number of other detections per bin.
        queries: number of queries used.
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
    """Histogram of similarities as searched, before context matching or re-ranking.

    Args:
        problem: search problem with at least one gallery.
        options: options, of which score threshold and score weighting are used.
        gallery: name of the gallery; None for the main one.
        bins: number of bins of equal width from -1 to 1; values beyond an end, by rounding, count in the last bin.
        max_queries: maximum number of queries; if more have a feature, an evenly spaced subset is used.
    """
    galleries = problem.galleries[problem.gallery_name(gallery)]
    index = DetectionIndex.build(problem, options.score_threshold, options.score_weighted)
    members = Members(problem, galleries, index)
    searchable = np.asarray(problem.query_feature.any(axis=1))
    matches = match_targets(galleries, index, searchable)
    queries = np.flatnonzero(searchable)
    if len(queries) > max_queries:
        queries = queries[np.linspace(0, len(queries) - 1, max_queries).round().astype(np.int64)]
    feature = problem.query_feature.astype(index.feature.dtype, copy=False)
    counts = np.zeros((2, bins), np.int64)
    for query in queries.tolist():
        similarity = feature[query : query + 1] @ index.feature.T
        _, hit = true_positives(matches, query, similarity)
        row = members.masked(query, similarity[0])
        counts[0] += _counted(row[hit], bins)
        row[hit] = -np.inf
        counts[1] += _counted(row[row > -np.inf], bins)
    return SimilarityHistogram(np.linspace(-1, 1, bins + 1), counts[0], counts[1], len(queries))


def _counted(value: np.ndarray, bins: int) -> np.ndarray:
    place = ((value + 1) * (bins / 2)).astype(np.int64)
    return np.bincount(np.clip(place, 0, bins - 1), minlength=bins)


def query_rows(problem: SearchProblem, result: SearchResult) -> list[dict[str, Any]]:
    """Mapping in JSON types for each query: the query, its metrics and its best results.

    Returns:
        For each query `frame`, `box` (xyxy pixels), `person_id`, `AP` (fraction, None without a match),
        `first_correct_rank` (from 1, None if none is found), `matches`, `matches_found` and `results`: `frame`, `box`,
        `score`, `similarity`, `iou` (with the person's box in that frame, None if there is none) and `correct` of the
        best detections.
    """
    rows, iou = [], best_iou(problem, result)
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
                        "iou": finite_or_none(round(float(iou[query, rank]), 6)),
                        "correct": bool(result.best_correct[query, rank]),
                    }
                    for rank, detection in enumerate(result.best_detection[query].tolist())
                    if detection >= 0
                ],
            }
        )
    return rows


def best_iou(problem: SearchProblem, result: SearchResult) -> np.ndarray:
    """IoU of each query's best detections with the person's box in the detection's frame.

    Returns:
        (Q, 10) float64 in 0..1; NaN if the gallery has no box of the person in that frame, or there is no detection.
    """
    galleries, num_frames = problem.galleries[result.gallery], len(problem.frame_name)
    target_query = np.repeat(np.arange(len(result.ap)), np.diff(galleries.target_offset))
    key = target_query * num_frames + galleries.target_frame
    order = np.argsort(key)
    query, rank = np.nonzero(result.best_detection >= 0)
    detection = result.best_detection[query, rank]
    wanted = query * num_frames + problem.det_frame[detection]
    place = np.searchsorted(key[order], wanted)
    shown = np.flatnonzero(np.append(key[order], -1)[place] == wanted)
    query, rank, detection = query[shown], rank[shown], detection[shown]
    iou = np.full(result.best_detection.shape, np.nan)
    iou[query, rank] = box_iou(problem.det_box[detection], galleries.target_box[order[place[shown]]])
    return iou


def read_queries(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Content of a queries.json written by the evaluator.

    Returns:
        One mapping per query, see `query_rows`.

    Raises:
        DatasetError: the file is missing or not of the evaluator, or has no queries.
    """
    rows = read_json(path)
    try:
        for row in rows:
            _check_query(row)
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} is not the evaluator's queries.json ({error!r}); evaluate again") from error
    if not rows:
        raise DatasetError(f"{path} has no queries: nothing was searched, so there is nothing to draw")
    return rows


def _check_query(row: Mapping[str, Any]) -> None:
    for box in (row, *row["results"]):
        if len(box["box"]) != 4 or not isinstance(box["frame"], str):
            raise ValueError(f"box {box['box']} in frame {box['frame']}")
    for result in row["results"]:
        float(result["similarity"]), float(result["iou"] or 0), bool(result["correct"])
    row["AP"], row["matches"], row["matches_found"]  # noqa: B018


def choose_queries(rows: Sequence[Mapping[str, Any]], count: int) -> list[int]:
    """Representative queries, evenly spaced in order of descending average precision, including best and worst.

    Args:
        rows: see `read_queries`. Queries without a match are only chosen if there are no others.
        count: maximum number of queries.

    Returns:
        indices of rows, the best first; queries of equal AP in stored order.
    """
    ranked = [index for index, row in enumerate(rows) if row["AP"] is not None] or list(range(len(rows)))
    ranked.sort(key=lambda index: -(rows[index]["AP"] or 0.0))
    if count < 2:
        return ranked[: max(count, 0)]
    return [ranked[i] for i in np.unique(np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int))]


def hardest_queries(rows: Sequence[Mapping[str, Any]], count: int) -> list[int]:
    """Queries with the lowest average precision; among equal ones, those with more matches first.

    Args:
        rows: see `read_queries`. Queries without a match have no average precision and are never chosen.
        count: maximum number of queries.

    Returns:
        indices of rows, the hardest first.
    """
    known = [index for index, row in enumerate(rows) if row["AP"] is not None]
    return sorted(known, key=lambda index: (rows[index]["AP"], -rows[index]["matches"]))[: max(count, 0)]


def _plain(box: np.ndarray) -> list[float]:
    return [round(float(value), 3) for value in box]


_GALLERIES = {
    "all_cameras": "every test frame but the query's own, all cameras",
    "all_frames": "every test frame but the query's own",
    "cross_camera": "every test frame of other cameras than the query's",
    "full": "every test frame but the query's own (matches as in the smallest gallery)",
}
_QUERY_FEATURES = {
    "ground_truth": "of the ground-truth box",
    "detection": "of the detection with the highest IoU to the ground-truth box",
}
_SEARCHED_BOX = "of the searched ground-truth box with the highest IoU to the query's"


def describe_protocol(
    kind: str, names: Mapping[str, Sequence[str]], choices: Mapping[str, Any], options: SearchOptions
) -> dict[str, Any]:
    """Protocol of an evaluation as a mapping in JSON types.

    Args:
        kind: kind of the `SearchProtocol`.
        names: names of the metrics by gallery.
        choices: "query_feature" and "gallery" as in `build_problem`.
        options: search options.
    """
    detections = choices["gallery"] == "detections"
    matching, reranking = options.context_matching, options.reranking
    return {
        "dataset_kind": kind,
        "galleries": {metric: _describe_gallery(gallery) for gallery, metrics in names.items() for metric in metrics},
        "searched": f"detections of score >= {options.score_threshold:g}" if detections else "ground-truth boxes",
        "query_feature": _query_feature(choices["query_feature"], detections),
        # Every ground-truth box has the score 1.
        "similarity": "cosine x detection score" if options.score_weighted and detections else "cosine",
        "context_matching": (
            f"CBGM, k1 = {matching.k1}, k2 = {matching.k2}, query NMS {matching.query_nms:g}" if matching else "none"
        ),
        "reranking": (
            f"k-reciprocal, k1 = {reranking.k1}, k2 = {reranking.k2}, lambda = {reranking.original_weight:g}, "
            f"best {reranking.shortlist} of a query"
            if reranking
            else "none"
        ),
        "true_positive": "in each frame the most similar with IoU >= min(0.5, wh / ((w + 10)(h + 10)))",
        "average_precision": "mean precision at the true positives x recall; queries without a match are excluded",
    }


def _describe_gallery(gallery: str) -> str:
    gap = gallery.removeprefix("frame_gap_")
    if gap != gallery:
        return f"every test frame but those of the query's camera nearer than {gap} frames"
    return _GALLERIES.get(gallery, f"{gallery} frames a query, from the protocol file")


def _query_feature(choice: str, detections: bool) -> str:
    return _SEARCHED_BOX if choice == "detection" and not detections else _QUERY_FEATURES[choice]


def describe_breakdown(
    problem: SearchProblem, results: Mapping[str, SearchResult], options: SearchOptions, detection: bool
) -> dict[str, Any]:
    """Breakdown of the metrics as a mapping in JSON types, in percent.

    Args:
        problem: search problem.
        results: results by gallery.
        options: search options.
        detection: whether detections were searched, which have a precision-recall curve.

    Returns:
        `main_gallery`; `galleries`: for each one with metrics its `queries`, `frames` (mean number searched per query),
        `all_cameras`, `mAP`, `cmc` (top-1 to top-20) and the breakdowns `cameras` and `heights`; `similarity`: see
        `SimilarityHistogram`; `detection`: points of the precision-recall curve, None without detections.
    """
    main = problem.gallery_name()
    counts = similarity_histogram(problem, options, main)
    return {
        "unit": "percent",
        "main_gallery": main,
        "galleries": {
            name: _gallery(problem, name, result) for name, result in results.items() if result.num_evaluated
        },
        "similarity": {
            "queries": counts.queries,
            "edges": counts.edges.round(6).tolist(),
            "matches": counts.matches.tolist(),
            "others": counts.others.tolist(),
        },
        "detection": _thinned(precision_recall(problem, options.score_threshold)) if detection else None,
    }


def _gallery(problem: SearchProblem, name: str, result: SearchResult) -> dict[str, Any]:
    counted = result.target_count > 0
    heights = by_height(problem, result)
    return {
        "queries": result.num_evaluated,
        "frames": round(float(gallery_sizes(problem, name)[counted].mean()), 1),
        "all_cameras": not problem.galleries[name].other_cameras_only,
        "mAP": 100 * result.mAP,
        "cmc": (100 * cumulative_matches(result)).tolist(),
        "cameras": [{"camera": camera, **_part(part)} for camera, part in by_camera(problem, result).items()],
        "heights": [
            {"from": low, "to": high if np.isfinite(high) else None, **_part(part)}
            for (low, high), part in heights.items()
        ],
    }


def _part(part: Part) -> dict[str, Any]:
    metrics = {"mAP": 100 * part.mAP, "top1": 100 * part.top1} if part.queries else {"mAP": None, "top1": None}
    return {"queries": part.queries, **metrics}


def _thinned(curve: PrecisionRecall, points: int = 300) -> dict[str, list[float]]:
    """At most `points` points of a curve, in percent, evenly spaced in recall, including the first and the last."""
    place = np.arange(len(curve.recall))
    if len(place) > points:
        wanted = np.linspace(curve.recall[0], curve.recall[-1], points)
        place = np.unique(np.append(np.searchsorted(curve.recall, wanted), place[-1]))
    return {
        "score": curve.score[place].round(6).tolist(),
        "recall": (100 * curve.recall[place]).round(4).tolist(),
        "precision": (100 * curve.precision[place]).round(4).tolist(),
    }
