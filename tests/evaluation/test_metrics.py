"""Search figures against golden cases, against a slow reference on random problems, and in the corner cases."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from person_search.errors import ConfigError, DatasetError
from person_search.evaluation import metrics
from person_search.evaluation.metrics import SearchOptions, evaluate_galleries, evaluate_search
from person_search.evaluation.problem import Galleries, SearchProblem, offsets_of, own_frame_galleries, with_galleries
from person_search.evaluation.rescoring import ContextMatching, Reranking

# Boxes that coincide, overlap by more and by less than the thresholds, or have no area.
BOXES = [
    (0, 0, 20, 40), (0, 0, 20, 40), (2, 0, 20, 40), (0, 0, 20, 14), (10, 0, 30, 40), (50, 50, 54, 58), (5, 5, 5, 9)
]  # fmt: skip


@pytest.fixture(scope="module")
def expected(shared):
    return json.loads((shared / "golden" / "expected.json").read_text())["search_prw.npz"]


@pytest.mark.parametrize("case, gallery, options", [
    ("all_cameras", "all_cameras", SearchOptions()),
    ("cross_camera", "cross_camera", SearchOptions()),
    ("all_cameras_cbgm_k1_30_k2_4", "all_cameras", SearchOptions(context_matching=ContextMatching(30, 4))),
])  # fmt: skip
def test_golden_figures(golden_problem, expected, case, gallery, options):
    result = evaluate_galleries(golden_problem, options, [gallery])[gallery]
    assert result.metrics() == pytest.approx(expected[case], abs=1e-6)


def test_golden_figures_do_not_depend_on_blocks_or_on_other_galleries(golden_problem, expected, monkeypatch):
    monkeypatch.setattr(metrics, "_BLOCK_SIZE", 7 * len(golden_problem.det_frame))
    results = evaluate_galleries(golden_problem)
    assert list(results) == ["all_cameras", "cross_camera"]
    for name, result in results.items():
        assert result.metrics() == pytest.approx(expected[name], abs=1e-6)


def test_order_of_detections_plays_no_part(golden_problem):
    shuffled = np.random.default_rng(0).permutation(len(golden_problem.det_frame))
    names = ("det_frame", "det_box", "det_score", "det_feature")
    other = replace(golden_problem, **{name: getattr(golden_problem, name)[shuffled] for name in names})
    ours, theirs = evaluate_search(golden_problem), evaluate_search(other)
    assert theirs.metrics() == pytest.approx(ours.metrics(), abs=1e-9)
    np.testing.assert_array_equal(shuffled[theirs.best_detection], ours.best_detection)


def problem_of(detections, gts, queries, num_frames, frame_camera=None) -> SearchProblem:
    """A problem of detections (frame, box, score, feature), gts (frame, box, person), queries (frame, box, person,
    feature)."""
    return SearchProblem(
        det_frame=np.array([d[0] for d in detections], np.int64),
        det_box=np.array([d[1] for d in detections], np.float32).reshape(-1, 4),
        det_score=np.array([d[2] for d in detections], np.float32),
        det_feature=np.array([d[3] for d in detections], np.float32).reshape(-1, len(queries[0][3])),
        frame_name=tuple(f"{f}.jpg" for f in range(num_frames)),
        gt_frame=np.array([g[0] for g in gts], np.int64),
        gt_box=np.array([g[1] for g in gts], np.float64).reshape(-1, 4),
        gt_person_id=np.array([g[2] for g in gts], np.int64),
        query_frame=np.array([q[0] for q in queries]),
        query_box=np.array([q[1] for q in queries], np.float64),
        query_person_id=np.array([q[2] for q in queries]),
        query_feature=np.array([q[3] for q in queries], np.float32),
        frame_camera=frame_camera,
    )


@st.composite
def problems(draw):
    """Small problems full of ties, duplicates, empty frames, unlabelled boxes and persons with two boxes in a frame."""
    num_frames = draw(st.integers(1, 5))
    frames = st.integers(0, num_frames - 1)
    boxes = st.sampled_from(BOXES)
    # Small whole numbers: similarities are exact whatever the order of summation, and often equal.
    feature = st.lists(st.integers(-2, 2), min_size=3, max_size=3)
    dets = draw(st.lists(st.tuples(frames, boxes, st.sampled_from([0.25, 0.5, 0.5, 0.75, 1.0]), feature), max_size=24))
    gts = draw(st.lists(st.tuples(frames, boxes, st.sampled_from([-2, -1, 0, 1, 2])), min_size=1, max_size=12))
    queries = draw(st.lists(st.tuples(frames, boxes, st.integers(0, 3), feature), min_size=1, max_size=4))
    cameras = draw(st.lists(st.integers(1, 2), min_size=num_frames, max_size=num_frames))
    problem = problem_of(dets, gts, queries, num_frames, frame_camera=np.array(cameras))
    galleries = {name: own_frame_galleries(problem, name == "cross") for name in ("all", "cross")}
    return with_galleries(problem, galleries)


def listed_galleries_of(problem, galleries: list[dict]) -> Galleries:
    """The same galleries with their frames listed, in reverse order."""
    frames = [list(gallery)[::-1] for gallery in galleries]
    targets = [[(frame, box) for frame, box in gallery.items() if box is not None] for gallery in galleries]
    return Galleries(
        target_offset=offsets_of([len(rows) for rows in targets]),
        target_frame=np.array([frame for rows in targets for frame, _ in rows], np.int64),
        target_box=np.array([box for rows in targets for _, box in rows], np.float64).reshape(-1, 4),
        target_count=np.array([len(rows) for rows in targets], np.int64),
        frame_offset=offsets_of([len(rows) for rows in frames]),
        frame=np.array([frame for rows in frames for frame in rows], np.int32),
    )


@settings(max_examples=150, deadline=None)
@given(problems(), st.booleans(), st.sampled_from(["all", "cross", "listed"]))
def test_random_problems_match_the_slow_reference(slow, problem, weighted, name):
    queries = range(len(problem.query_frame))
    galleries = [slow.gallery(problem, query, name == "cross") for query in queries]
    if name == "listed":
        problem = with_galleries(problem, {"listed": listed_galleries_of(problem, galleries)})
    result = evaluate_galleries(problem, SearchOptions(score_weighted=weighted), [name])[name]
    aps, ranks = [], []
    for query, gallery in enumerate(galleries):
        similarity = slow.similarity(problem, query, weighted)
        ap, rank, best = slow.query(problem, query, gallery, similarity)
        assert result.ap[query] == pytest.approx(np.nan if ap is None else ap, abs=1e-12, nan_ok=True)
        assert result.first_hit[query] == rank
        shown = result.best_detection[query] >= 0
        assert result.best_detection[query][shown].tolist() == [detection for detection, _ in best]
        assert result.best_correct[query][shown].tolist() == [correct for _, correct in best]
        expected = [similarity[detection] for detection, _ in best]
        assert result.best_similarity[query][shown].tolist() == pytest.approx(expected)
        if ap is not None:
            aps.append(ap)
            ranks.append(rank)
    assert result.num_evaluated == len(aps)
    figures = {f"top{k}": np.mean([0 < rank <= k for rank in ranks]) if ranks else np.nan for k in (1, 5, 10)}
    assert result.metrics() == pytest.approx({"mAP": np.mean(aps) if aps else np.nan, **figures}, nan_ok=True)


def make_problem(detections, gts, num_frames=3, query_feature=(1.0, 0.0)) -> SearchProblem:
    """One query of person 7 in frame 0; detections (frame, box, score, feature), gts (frame, box, person)."""
    query = (0, (0, 0, 20, 40), 7, query_feature)
    problem = problem_of(detections, gts, [query], num_frames)
    return with_galleries(problem, {"all": own_frame_galleries(problem, False)})


BOX, FAR = (0, 0, 20, 40), (100, 100, 120, 140)
HIT, LIKE, UNLIKE = (1.0, 0.0), (0.8, 0.6), (0.0, 1.0)


def test_of_two_boxes_of_a_person_in_a_frame_the_first_counts():
    gts = [(1, BOX, 7), (1, FAR, 7)]
    assert evaluate_search(make_problem([(1, BOX, 0.9, HIT)], gts)).mAP == 1.0
    assert evaluate_search(make_problem([(1, FAR, 0.9, HIT)], gts)).mAP == 0.0


def test_a_second_detection_of_the_person_is_wrong():
    result = evaluate_search(make_problem([(1, BOX, 0.9, LIKE), (1, BOX, 0.9, HIT)], [(1, BOX, 7)]))
    assert result.mAP == 1.0
    assert result.best_detection[0, :2].tolist() == [1, 0]
    assert result.best_correct[0, :2].tolist() == [True, False]


def test_missed_targets_scale_average_precision():
    detections = [(1, BOX, 0.9, HIT), (2, BOX, 0.3, HIT)]  # the second is below the score threshold
    result = evaluate_search(make_problem(detections, [(1, BOX, 7), (2, BOX, 7)]))
    assert (result.mAP, result.found_count[0], result.target_count[0]) == (0.5, 1, 2)
    assert evaluate_search(make_problem(detections, [(1, BOX, 7), (2, BOX, 7)]), SearchOptions(0.3)).mAP == 1.0


def test_wrong_detections_of_equal_similarity_come_first():
    detections = [(1, BOX, 0.9, HIT), (1, FAR, 0.9, HIT), (2, FAR, 0.9, HIT), (2, FAR, 0.9, UNLIKE)]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        result = evaluate_search(make_problem([detections[i] for i in order], [(1, BOX, 7)]))
        assert result.first_hit[0] == 3
        assert (result.top1, result.top5) == (0.0, 1.0)
        assert result.mAP == pytest.approx(1 / 3)


def test_queries_without_a_match_are_left_out_of_the_means():
    problem = make_problem([(1, BOX, 0.9, HIT)], [(0, BOX, 7)])
    result = evaluate_search(problem)
    assert np.isnan([result.mAP, result.top1, result.ap[0]]).all()
    assert result.num_evaluated == 0
    assert result.best_detection[0, 0] == 0  # its results are still there to look at


def test_a_query_without_a_feature_finds_nothing():
    result = evaluate_search(make_problem([(1, BOX, 0.9, HIT)], [(1, BOX, 7)], query_feature=(0, 0)))
    assert (result.mAP, result.top10, result.first_hit[0], result.num_evaluated) == (0.0, 0.0, 0, 1)
    assert (result.best_detection == -1).all()


@pytest.mark.parametrize("options", [
    SearchOptions(),
    SearchOptions(score_weighted=True),
    SearchOptions(context_matching=ContextMatching()),
    SearchOptions(reranking=Reranking()),
])  # fmt: skip
@pytest.mark.parametrize("detections", [[], [(0, BOX, 0.9, HIT)], [(2, BOX, 0.9, HIT)]])
def test_without_a_detection_in_the_right_place_all_figures_are_zero(options, detections):
    result = evaluate_search(make_problem(detections, [(1, BOX, 7)]), options)
    assert result.metrics() == {"mAP": 0.0, "top1": 0.0, "top5": 0.0, "top10": 0.0}


def test_detections_without_area_match_nothing():
    flat = (0, 0, 0, 40)
    assert evaluate_search(make_problem([(1, flat, 0.9, HIT)], [(1, BOX, 7)])).mAP == 0.0
    assert evaluate_search(make_problem([(1, flat, 0.9, HIT)], [(1, flat, 7)])).mAP == 0.0
    assert evaluate_search(make_problem([(1, BOX, 0.9, HIT)], [(1, flat, 7)])).mAP == 0.0


def test_small_persons_have_a_lower_iou_threshold():
    # 10 x 20 pixels: 200 / (20 x 30) = 1/3.
    detection = (0, 0, 10, 8)  # IoU 0.4
    assert evaluate_search(make_problem([(1, detection, 0.9, HIT)], [(1, (0, 0, 10, 20), 7)])).mAP == 1.0
    detection = (0, 0, 100, 80)  # the same IoU with a large person
    assert evaluate_search(make_problem([(1, detection, 0.9, HIT)], [(1, (0, 0, 100, 200), 7)])).mAP == 0.0


def test_score_weighting_changes_the_order():
    problem = make_problem([(1, BOX, 0.5, HIT), (2, FAR, 1.0, LIKE)], [(1, BOX, 7)])
    assert evaluate_search(problem).first_hit[0] == 1
    weighted = evaluate_search(problem, SearchOptions(score_weighted=True))
    assert weighted.first_hit[0] == 2
    assert weighted.best_similarity[0, :2] == pytest.approx([0.8, 0.5])


def test_bad_requests_are_named():
    problem = make_problem([], [(1, BOX, 7)])
    with pytest.raises(DatasetError, match="no gallery 'cross'; there are \\['all'\\]"):
        evaluate_search(problem, gallery="cross")
    with pytest.raises(DatasetError, match="no gallery"):
        evaluate_search(replace(problem, galleries={}))
    with pytest.raises(ConfigError, match="TEST.PERSON_SEARCH.SCORE_THRESHOLD is 50, expected"):
        SearchOptions(score_threshold=50)
    with pytest.raises(ConfigError, match="cannot both be on"):
        SearchOptions(context_matching=ContextMatching(), reranking=Reranking())
    assert json.dumps(SearchOptions(reranking=Reranking()).describe())
