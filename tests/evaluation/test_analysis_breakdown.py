"""Parts of the queries: against plain loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from person_search.evaluation.analysis import HEIGHT_EDGES, by_camera, by_height, metrics_of
from person_search.evaluation.metrics import SearchResult, evaluate_search


def result_of(ap, first_hit) -> SearchResult:
    """A result with these figures of its queries; NaN as average precision: no match to find."""
    count = len(ap)
    return SearchResult(
        gallery="g", mAP=0, top1=0, top5=0, top10=0,
        ap=np.array(ap, float), first_hit=np.array(first_hit, np.int64),
        target_count=np.where(np.isnan(ap), 0, 3), found_count=np.zeros(count, np.int64),
        best_detection=np.full((count, 10), -1), best_similarity=np.zeros((count, 10)),
        best_correct=np.zeros((count, 10), bool),
    )  # fmt: skip


def slow_figures(result, chosen) -> tuple:
    """Queries, mAP and top-1 of some queries."""
    aps = [result.ap[query] for query in chosen if result.target_count[query]]
    tops = [float(result.first_hit[query] == 1) for query in chosen if result.target_count[query]]
    return (len(aps), sum(aps) / len(aps), sum(tops) / len(tops)) if aps else (0, np.nan, np.nan)


@pytest.mark.parametrize("gallery", ["all_cameras", "cross_camera"])
def test_cameras_and_heights_of_the_golden_problem(golden_problem, gallery):
    result = evaluate_search(golden_problem, gallery=gallery)
    cameras, heights = {}, {}
    bounds = [0, *HEIGHT_EDGES, np.inf]
    for query, frame in enumerate(golden_problem.query_frame):
        cameras.setdefault(int(golden_problem.frame_camera[frame]), []).append(query)
        height = golden_problem.query_box[query][3] - golden_problem.query_box[query][1]
        low = max(bound for bound in bounds if bound <= height)
        heights.setdefault((low, bounds[bounds.index(low) + 1]), []).append(query)
    for parts, expected in ((by_camera(golden_problem, result), cameras), (by_height(golden_problem, result), heights)):
        assert list(parts) == sorted(expected)
        assert len(parts) > 2
        for key, part in parts.items():
            assert (part.queries, part.mAP, part.top1) == pytest.approx(slow_figures(result, expected[key]))


@given(st.lists(st.tuples(st.sampled_from([np.nan, 0.0, 0.25, 1.0]), st.integers(0, 3), st.booleans()), max_size=30))
def test_metrics_of_some_queries(rows):
    ap, first_hit, chosen = ([row[i] for row in rows] for i in range(3))
    result = result_of(ap, first_hit)
    part = metrics_of(result, np.array(chosen, bool))
    expected = slow_figures(result, [i for i, taken in enumerate(chosen) if taken])
    np.testing.assert_allclose((part.queries, part.mAP, part.top1), expected)


def test_a_bin_holds_its_lower_bound(golden_problem):
    box = golden_problem.query_box.copy()
    box[:, 3] = box[:, 1] + np.tile([47.9, 48.0, 63.9], 50)
    result = evaluate_search(golden_problem)
    heights = by_height(replace(golden_problem, query_box=box), result)
    assert {bounds: part.queries for bounds, part in heights.items()} == {(32, 48): 50, (48, 64): 100}


def test_queries_without_a_match_are_left_out_but_have_their_row(golden_problem):
    result = evaluate_search(golden_problem)
    nothing = replace(result, target_count=np.zeros(150, np.int64), ap=np.full(150, np.nan))
    parts = by_camera(golden_problem, nothing)
    assert list(parts) == list(by_camera(golden_problem, result))
    assert all(part.queries == 0 and np.isnan(part.mAP) and np.isnan(part.top1) for part in parts.values())


def test_without_cameras(golden_problem):
    problem = replace(golden_problem, frame_camera=None, galleries={}, main_gallery="")
    assert by_camera(problem, evaluate_search(golden_problem)) == {}
