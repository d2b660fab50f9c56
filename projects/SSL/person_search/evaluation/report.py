"""What stands beside the figures of an evaluation: how they were made, in words, and what is behind them, in
numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .breakdown import Part, by_camera, by_height
from .curves import cumulative_matches, gallery_sizes, similarity_histogram
from .detection import PrecisionRecall, precision_recall
from .metrics import SearchOptions
from .problem import SearchProblem
from .results import SearchResult

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
    """The protocol of an evaluation as a mapping fit for JSON.

    Args:
        kind: of the `SearchProtocol`.
        names: gallery -> the names of its figures.
        choices: "query_feature" and "gallery" as in `build_problem`.
        options: how similarities are made.
    """
    detections = choices["gallery"] == "detections"
    matching, reranking = options.context_matching, options.reranking
    return {
        "dataset_kind": kind,
        "galleries": {
            figure: _GALLERIES.get(gallery, f"{gallery} frames a query, from the protocol file")
            for gallery, figures in names.items()
            for figure in figures
        },
        "searched": f"detections of score >= {options.score_threshold:g}" if detections else "ground-truth boxes",
        "query_feature": _query_feature(choices["query_feature"], detections),
        # The score of every ground-truth box is 1.
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
        "average_precision": "mean precision at the true positives x recall; queries without a match left out",
    }


def _query_feature(choice: str, detections: bool) -> str:
    return _SEARCHED_BOX if choice == "detection" and not detections else _QUERY_FEATURES[choice]


def describe_breakdown(
    problem: SearchProblem, results: Mapping[str, SearchResult], options: SearchOptions, detection: bool
) -> dict[str, Any]:
    """What is behind the figures, as a mapping fit for JSON; figures in percent.

    Args:
        problem: what was searched.
        results: gallery -> its result.
        options: how similarities are made.
        detection: whether detections were searched, so that they have a precision-recall curve.

    Returns:
        `main_gallery`; `galleries`: for each one with figures its `queries`, `frames` (mean number searched for a
        query), `all_cameras`, `mAP`, `cmc` (top-1 to top-20) and the parts `cameras` and `heights`; `similarity`: see
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
    figures = {"mAP": 100 * part.mAP, "top1": 100 * part.top1} if part.queries else {"mAP": None, "top1": None}
    return {"queries": part.queries, **figures}


def _thinned(curve: PrecisionRecall, points: int = 300) -> dict[str, list[float]]:
    """At most so many points of a curve, in percent, evenly spaced in recall, first and last among them."""
    place = np.arange(len(curve.recall))
    if len(place) > points:
        wanted = np.linspace(curve.recall[0], curve.recall[-1], points)
        place = np.unique(np.append(np.searchsorted(curve.recall, wanted), place[-1]))
    return {
        "score": curve.score[place].round(6).tolist(),
        "recall": (100 * curve.recall[place]).round(4).tolist(),
        "precision": (100 * curve.precision[place]).round(4).tolist(),
    }
