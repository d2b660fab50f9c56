"""Top-k over k, gallery sizes and similarities: against plain loops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from person_search.evaluation.analysis import cumulative_matches, gallery_sizes, similarity_histogram
from person_search.evaluation.metrics import SearchOptions, evaluate_search
from person_search.evaluation.problem import Galleries, SearchProblem, own_frame_galleries, with_galleries


def test_top_k(golden_problem):
    result = evaluate_search(golden_problem)
    curve = cumulative_matches(result)
    ranks = result.first_hit[result.target_count > 0]
    assert curve.shape == (20,)
    for k in range(1, 21):
        assert curve[k - 1] == pytest.approx(np.mean([0 < rank <= k for rank in ranks]))
    assert (curve[0], curve[4], curve[9]) == pytest.approx((result.top1, result.top5, result.top10))
    nobody = replace(result, target_count=np.zeros(150, np.int64))
    assert np.isnan(cumulative_matches(nobody)).all()


def test_gallery_sizes(golden_problem, slow):
    for name in ("all_cameras", "cross_camera"):
        sizes = gallery_sizes(golden_problem, name)
        assert sizes[149] == len(slow.gallery(golden_problem, 149, cross_camera=name == "cross_camera"))
    nothing = {"target_frame": np.zeros(0, np.int64), "target_box": np.zeros((0, 4))}
    nothing |= {"target_offset": np.zeros(151, np.int64), "target_count": np.zeros(150, np.int64)}
    count = np.arange(150) % 7
    listed = Galleries(
        **nothing, frame_offset=np.append(0, np.cumsum(count)), frame=np.concatenate([np.arange(n) for n in count])
    )
    # CUHK-SYSU's "full": the query's own frame is searched where the protocol lists it.
    full = Galleries(**nothing, excluded_frame=np.where(count > 3, -1, golden_problem.query_frame))
    problem = with_galleries(golden_problem, {"listed": listed, "full": full}, "full")
    assert gallery_sizes(problem, "listed").tolist() == count.tolist()
    assert gallery_sizes(problem).tolist() == np.where(count > 3, 700, 699).tolist()


@pytest.fixture
def problem() -> SearchProblem:
    """Twelve frames of two cameras with three detections each, four persons and a stranger."""
    rng = np.random.default_rng(3)
    frame, place = np.repeat(np.arange(12), 3), np.tile(np.arange(3), 12)
    box = np.stack([40.0 * place, np.zeros(36), 40.0 * place + 30, np.full(36, 60.0)], axis=1)
    feature = rng.normal(size=(36, 8))
    query = np.arange(0, 36, 4)
    query_feature = rng.normal(size=(9, 8))
    query_feature[4] = 0
    person = np.where(rng.random(36) < 0.3, -1, frame % 4)
    person[query] = np.arange(9) % 4
    problem = SearchProblem(
        det_frame=frame, det_box=box, det_score=rng.uniform(0.3, 1, 36),
        det_feature=feature / np.linalg.norm(feature, axis=1, keepdims=True),
        frame_name=tuple(f"f{i}" for i in range(12)), gt_frame=frame, gt_box=box, gt_person_id=person,
        query_frame=frame[query], query_box=box[query], query_person_id=person[query],
        query_feature=query_feature / np.maximum(np.linalg.norm(query_feature, axis=1, keepdims=True), 1e-9),
        frame_camera=np.arange(12) % 2,
    )  # fmt: skip
    return with_galleries(
        problem, {"all": own_frame_galleries(problem, False), "other": own_frame_galleries(problem, True)}
    )


@pytest.mark.parametrize("gallery", ["all", "other"])
@pytest.mark.parametrize("weighted", [False, True])
def test_similarities_of_matches_and_others(problem, slow, gallery, weighted):
    counted = similarity_histogram(problem, SearchOptions(score_weighted=weighted), gallery, bins=10)
    expected = np.zeros((2, 10), int)
    for query in range(9):
        if not problem.query_feature[query].any():
            continue
        similarity = slow.similarity(problem, query, weighted)
        for frame, box in slow.gallery(problem, query, cross_camera=gallery == "other").items():
            own = [d for d in range(36) if problem.det_frame[d] == frame and problem.det_score[d] >= 0.5]
            near = [d for d in own if box is not None and slow.iou(problem.det_box[d], box) >= 0.5]
            hit = max(near, key=lambda d: similarity[d], default=None)
            for d in own:
                expected[int(d != hit), min(9, int((similarity[d] + 1) * 5))] += 1
    assert counted.queries == 8
    assert counted.matches.tolist() == expected[0].tolist()
    assert counted.others.tolist() == expected[1].tolist()
    assert expected.sum(axis=1).min() > 3
    np.testing.assert_allclose(counted.edges, np.linspace(-1, 1, 11))


def test_some_queries_stand_for_all(problem):
    every = similarity_histogram(problem, SearchOptions(), max_queries=8)
    some = similarity_histogram(problem, SearchOptions(), max_queries=3)
    assert (every.queries, some.queries) == (8, 3)
    assert (some.others <= every.others).all()
    assert 0 < some.others.sum() < every.others.sum()
