"""queries.json: what an evaluation says about each query; written, read, and chosen from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import DatasetError
from .matching import box_iou
from .problem import SearchProblem
from .results import SearchResult, finite_or_none
from .storage import read_json


def query_rows(problem: SearchProblem, result: SearchResult) -> list[dict[str, Any]]:
    """One mapping a query, fit for JSON: the query, its figures and its best gallery results.

    Returns:
        For each query `frame`, `box` (xyxy pixels), `person_id`, `AP` (fraction, None without a match to find),
        `first_correct_rank` (from 1, None where none is found), `matches`, `matches_found` and `results`: `frame`,
        `box`, `score`, `similarity`, `iou` (with the person's box in that frame, None where there is none) and
        `correct` of the best detections.
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
        (Q, 10) float64 in 0..1; NaN where the gallery has no box of the person in that frame, or no such detection.
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
    """Reads queries.json, which the evaluator writes.

    Returns:
        One mapping a query, see `query_rows`.

    Raises:
        DatasetError: the file is missing, no such file, or holds no query.
    """
    rows = read_json(path)
    try:
        for row in rows:
            _check_query(row)
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} is not the evaluator's queries.json ({error!r}); evaluate again") from error
    if not rows:
        raise DatasetError(f"{path} holds no query: nothing was searched, so there is nothing to draw")
    return rows


def _check_query(row: Mapping[str, Any]) -> None:
    for box in (row, *row["results"]):
        if len(box["box"]) != 4 or not isinstance(box["frame"], str):
            raise ValueError(f"box {box['box']} in frame {box['frame']}")
    for result in row["results"]:
        float(result["similarity"]), float(result["iou"] or 0), bool(result["correct"])
    row["AP"], row["matches"], row["matches_found"]  # noqa: B018


def choose_queries(rows: Sequence[Mapping[str, Any]], count: int) -> list[int]:
    """Queries that stand for all: evenly spaced in the order of falling average precision, best and worst among them.

    Args:
        rows: see `read_queries`. Queries without a match to find are chosen only where there are no others.
        count: at most this many.

    Returns:
        indices of rows, the best first; queries of equal AP in their stored order.
    """
    ranked = [index for index, row in enumerate(rows) if row["AP"] is not None] or list(range(len(rows)))
    ranked.sort(key=lambda index: -(rows[index]["AP"] or 0.0))
    if count < 2:
        return ranked[: max(count, 0)]
    return [ranked[i] for i in np.unique(np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int))]


def hardest_queries(rows: Sequence[Mapping[str, Any]], count: int) -> list[int]:
    """The queries of lowest average precision; of equal ones first those with more matches to find.

    Args:
        rows: see `read_queries`. Queries without a match to find have no average precision and are never among them.
        count: at most this many.

    Returns:
        indices of rows, the hardest first.
    """
    known = [index for index, row in enumerate(rows) if row["AP"] is not None]
    return sorted(known, key=lambda index: (rows[index]["AP"], -rows[index]["matches"]))[: max(count, 0)]


def _plain(box: np.ndarray) -> list[float]:
    return [round(float(value), 3) for value in box]
