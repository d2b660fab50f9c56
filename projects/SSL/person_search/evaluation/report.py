"""How search figures were made, in words, to stand beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .metrics import SearchOptions

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
        "query_feature": _QUERY_FEATURES[choices["query_feature"]],
        "similarity": "cosine x detection score" if options.score_weighted else "cosine",
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
