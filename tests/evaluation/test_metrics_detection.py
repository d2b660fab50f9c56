"""Detection figures against the golden case, against a slow reference and in the corner cases."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from person_search.evaluation.metrics import evaluate_detection, precision_recall
from person_search.evaluation.problem import SearchProblem

BOXES = [(0, 0, 20, 40), (0, 0, 20, 40), (2, 0, 20, 40), (0, 0, 20, 20), (0, 0, 20, 19), (0, 0, 0, 40), (30, 0, 50, 40)]
FIGURES = ("recall", "AP", "recall_labelled")


def make_problem(detections, gts, num_frames=4) -> SearchProblem:
    """Detections (frame, box, score) and annotations (frame, box, person)."""
    return SearchProblem(
        det_frame=np.array([d[0] for d in detections], np.int64),
        det_box=np.array([d[1] for d in detections], np.float32).reshape(-1, 4),
        det_score=np.array([d[2] for d in detections], np.float32),
        det_feature=np.zeros((len(detections), 2), np.float32),
        frame_name=tuple(f"{f}.jpg" for f in range(num_frames)),
        gt_frame=np.array([g[0] for g in gts], np.int64),
        gt_box=np.array([g[1] for g in gts], np.float64).reshape(-1, 4),
        gt_person_id=np.array([g[2] for g in gts], np.int64),
        query_frame=np.zeros(0, np.int64),
        query_box=np.zeros((0, 4)),
        query_person_id=np.zeros(0, np.int64),
        query_feature=np.zeros((0, 2), np.float32),
    )


def test_golden_figures(shared, golden_problem):
    expected = json.loads((shared / "golden" / "expected.json").read_text())["search_prw.npz"]["detection"]
    result = evaluate_detection(golden_problem)
    assert {name: getattr(result, name) for name in FIGURES} == pytest.approx(expected, abs=1e-6)


frames = st.integers(0, 3)
boxes = st.sampled_from(BOXES)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(frames, boxes, st.sampled_from([0.25, 0.5, 0.75, 0.75, 1.0])), max_size=16),
    st.lists(st.tuples(frames, boxes, st.sampled_from([-2, 3])), min_size=1, max_size=10),
)
def test_random_problems_match_the_slow_reference(slow, detections, gts):
    problem = make_problem(detections, gts)
    result = evaluate_detection(problem)
    recall, average_precision = slow.detection(problem)
    assert (result.recall, result.AP) == pytest.approx((recall, average_precision))
    if result.num_labelled:
        assert result.recall_labelled == pytest.approx(slow.detection(problem, labelled=True)[0])
    else:
        assert np.isnan(result.recall_labelled)


def test_order_of_frames_plays_no_part():
    detections = [(2, BOXES[0], 0.9), (0, BOXES[3], 0.8), (2, BOXES[6], 0.7)]
    gts = [(2, BOXES[0], 1), (0, BOXES[0], -1)]
    assert evaluate_detection(make_problem(detections, gts)) == evaluate_detection(make_problem(detections[::-1], gts))


def test_detections_in_a_frame_without_boxes_are_wrong():
    problem = make_problem([(0, BOXES[0], 0.6), (1, BOXES[0], 0.9)], [(0, BOXES[0], 1)])
    result = evaluate_detection(problem)
    assert (result.recall, result.AP) == (1.0, 0.5)


def test_score_threshold_drops_detections():
    problem = make_problem([(0, BOXES[0], 0.4)], [(0, BOXES[0], 1)])
    assert evaluate_detection(problem).recall == 0.0
    assert evaluate_detection(problem).num_detections == 0
    assert evaluate_detection(problem, score_threshold=0.4).recall == 1.0


def test_iou_threshold():
    problem = make_problem([(0, BOXES[4], 0.9)], [(0, BOXES[0], 1)])  # IoU 0.475
    assert evaluate_detection(problem).recall == 0.0
    assert evaluate_detection(problem, iou_threshold=0.45).recall == 1.0


def test_without_any_box_the_figures_are_undefined():
    result = evaluate_detection(make_problem([(0, BOXES[0], 0.9)], []))
    assert np.isnan([result.recall, result.AP, result.recall_labelled]).all()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(frames, boxes, st.sampled_from([0.25, 0.5, 0.75, 0.75, 1.0])), max_size=16),
    st.lists(st.tuples(frames, boxes, st.sampled_from([-2, 3])), max_size=10),
)
def test_the_area_below_the_curve_is_the_average_precision(detections, gts):
    problem = make_problem(detections, gts)
    result, curve = evaluate_detection(problem), precision_recall(problem)
    if not gts:
        assert len(curve.score) == len(curve.recall) == len(curve.precision) == 0
        return
    assert curve.area == pytest.approx(result.AP)
    scores = sorted({d[2] for d in detections if d[2] >= 0.5}, reverse=True)
    assert curve.score.tolist() == scores
    for score, recall, precision in zip(curve.score, curve.recall, curve.precision, strict=True):
        shown = sum(d[2] >= score for d in detections)
        assert recall * len(gts) == pytest.approx(precision * shown)  # both are the boxes found
    if scores:
        assert curve.recall[-1] == pytest.approx(result.recall)


def test_the_golden_curve(golden_problem):
    curve = precision_recall(golden_problem)
    assert curve.area == pytest.approx(evaluate_detection(golden_problem).AP, abs=1e-9)
    assert (np.diff(curve.score) < 0).all()
    assert (np.diff(curve.recall) >= 0).all()
