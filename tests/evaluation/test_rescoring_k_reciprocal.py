"""k-reciprocal re-ranking against the paper's steps one by one, and its place in the search."""

from __future__ import annotations

import numpy as np
import pytest
from person_search.errors import ConfigError
from person_search.evaluation.metrics import SearchOptions, evaluate_search
from person_search.evaluation.problem import SearchProblem, own_frame_galleries, with_galleries
from person_search.evaluation.rescoring import Reranking, k_reciprocal_distance


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    feature = rng.standard_normal(shape)
    return feature / np.linalg.norm(feature, axis=1, keepdims=True)


def slow_distance(feature: np.ndarray, k1: int, k2: int, weight: float) -> np.ndarray:
    """Zhong et al., CVPR 2017, section 3, with sets."""
    n = len(feature)
    original = np.array([[np.sum((a - b) ** 2) for b in feature] for a in feature])
    original /= original.max(axis=1, keepdims=True)
    rank = np.argsort(original, axis=1, kind="stable").tolist()

    def reciprocal(i: int, k: int) -> set[int]:
        return {j for j in rank[i][: k + 1] if i in rank[j][: k + 1]}

    encoding = np.zeros((n, n))
    for i in range(n):
        neighbors = set(reciprocal(i, k1))
        for j in reciprocal(i, k1):
            theirs = reciprocal(j, int(np.around(k1 / 2)))
            if len(theirs & reciprocal(i, k1)) > 2 / 3 * len(theirs):
                neighbors |= theirs
        for j in neighbors:
            encoding[i, j] = np.exp(-original[i, j])
        encoding[i] /= encoding[i].sum()
    expanded = np.array([np.mean([encoding[j] for j in rank[i][:k2]], axis=0) for i in range(n)])
    distances = []
    for j in range(1, n):
        smaller, larger = np.minimum(expanded[0], expanded[j]).sum(), np.maximum(expanded[0], expanded[j]).sum()
        distances.append((1 - weight) * (1 - smaller / larger) + weight * original[0, j])
    return np.array(distances)


@pytest.mark.parametrize("size, k1, k2, weight", [
    (2, 20, 6, 0.3), (9, 20, 6, 0.3), (40, 20, 6, 0.3), (60, 7, 1, 0.0), (60, 3, 5, 0.3), (60, 20, 6, 1.0),
])  # fmt: skip
def test_distances_match_the_paper_step_by_step(size, k1, k2, weight):
    rng = np.random.default_rng(size + k1)
    feature = unit(rng, size, 5) + (rng.integers(0, 3, (size, 1)) == np.arange(5))  # some groups
    feature /= np.linalg.norm(feature, axis=1, keepdims=True)
    ours = k_reciprocal_distance(feature, Reranking(k1, k2, weight))
    np.testing.assert_allclose(ours, slow_distance(feature, k1, k2, weight), atol=1e-9)


def test_equal_features_give_finite_distances():
    distance = k_reciprocal_distance(np.ones((50, 4), np.float32) / 2, Reranking())
    assert np.isfinite(distance).all()


def make_problem(seed: int = 0, num_frames: int = 60) -> SearchProblem:
    """One detection in each frame; the first frame's person is the query."""
    rng = np.random.default_rng(seed)
    box = np.tile([0.0, 0, 20, 40], (num_frames, 1))
    feature = unit(rng, num_frames, 8).astype(np.float32)
    problem = SearchProblem(
        det_frame=np.arange(num_frames),
        det_box=box,
        det_score=rng.choice(np.array([0.5, 1.0], np.float32), num_frames),
        det_feature=feature,
        frame_name=tuple(f"{f}.jpg" for f in range(num_frames)),
        gt_frame=np.arange(num_frames),
        gt_box=box,
        gt_person_id=np.arange(num_frames) % 6,
        query_frame=np.array([0]),
        query_box=box[:1],
        query_person_id=np.array([0]),
        query_feature=feature[:1] + np.float32(0.1),
    )
    return with_galleries(problem, {"all": own_frame_galleries(problem, False)})


@pytest.mark.parametrize("weighted", [False, True])
def test_the_whole_gallery_is_re_ranked_where_the_shortlist_is_long(slow, weighted):
    problem = make_problem()
    feature = np.concatenate([problem.query_feature, problem.det_feature[1:]]).astype(np.float64)
    similarity = 1 - slow_distance(feature, 20, 6, 0.3)
    if weighted:
        similarity *= problem.det_score[1:]
    ap, rank, best = slow.query(problem, 0, slow.gallery(problem, 0), [0.0, *similarity])
    result = evaluate_search(problem, SearchOptions(score_weighted=weighted, reranking=Reranking()))
    assert (result.ap[0], result.first_hit[0]) == pytest.approx((ap, rank))
    assert result.best_detection[0].tolist() == [detection for detection, _ in best]
    assert result.best_similarity[0] == pytest.approx(np.sort(similarity)[:-11:-1], abs=1e-5)


def test_detections_beyond_the_shortlist_keep_their_order():
    problem = make_problem()
    plain = evaluate_search(problem)
    result = evaluate_search(problem, SearchOptions(reranking=Reranking(shortlist=4)))
    assert set(result.best_detection[0, :4]) == set(plain.best_detection[0, :4])
    assert result.best_detection[0, 4:].tolist() == plain.best_detection[0, 4:].tolist()
    assert (result.best_similarity[0, :4] >= 0).all()
    assert (result.best_similarity[0, 4:] <= -1).all()


def test_settings_are_checked():
    for wrong, message in (
        ({"k1": 0}, "RERANKING.K1 is 0"),
        ({"k2": 0}, "RERANKING.K2 is 0"),
        ({"shortlist": 0}, "re-ranking: shortlist is 0"),
        ({"original_weight": 1.5}, "RERANKING.LAMBDA is 1.5"),
    ):
        with pytest.raises(ConfigError, match=message):
            Reranking(**wrong)
