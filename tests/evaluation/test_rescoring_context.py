"""CBGM against trying out all assignments. The golden case is in test_metrics."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, permutations

import numpy as np
import pytest
from person_search.errors import ConfigError
from person_search.evaluation.metrics import SearchOptions, evaluate_search
from person_search.evaluation.problem import SearchProblem, own_frame_galleries, with_galleries
from person_search.evaluation.rescoring import ContextMatching

BOX = (0.0, 0.0, 20.0, 40.0)


def random_problem(seed: int, num_frames: int = 8, dimension: int = 6) -> SearchProblem:
    rng = np.random.default_rng(seed)
    per_frame = rng.integers(0, 5, num_frames)
    per_frame[0] = 3
    frame = rng.permutation(np.repeat(np.arange(num_frames), per_frame))
    # The last two are the queries': were they also detections of their own frames, assignments would be ambiguous.
    feature = rng.standard_normal((len(frame) + 2, dimension)).astype(np.float32)
    feature /= np.linalg.norm(feature, axis=1, keepdims=True)
    problem = SearchProblem(
        det_frame=frame,
        det_box=np.tile(np.float32(BOX), (len(frame), 1)),
        det_score=rng.choice(np.array([0.25, 0.5, 1.0], np.float32), len(frame)),
        det_feature=feature[:-2],
        frame_name=tuple(f"{f}.jpg" for f in range(num_frames)),
        gt_frame=np.arange(num_frames),
        gt_box=np.tile(BOX, (num_frames, 1)),
        gt_person_id=np.ones(num_frames, int),
        query_frame=np.array([0, 1]),
        query_box=np.tile(BOX, (2, 1)),
        query_person_id=np.ones(2, int),
        query_feature=feature[-2:],
    )
    return with_galleries(problem, {"all": own_frame_galleries(problem, False)})


def best_assignment(weight: np.ndarray) -> list[tuple[int, int]]:
    """All pairs of the assignment of greatest sum, by trial."""
    rows, columns = weight.shape
    size = min(rows, columns)
    candidates = [
        list(zip(chosen, order, strict=True))
        for chosen in combinations(range(rows), size)
        for order in permutations(range(columns), size)
    ]
    return max(candidates, key=lambda assignment: sum(weight[i, j] for i, j in assignment))


def slow_similarity(problem: SearchProblem, query: int, k1: int, k2: int, weighted: bool) -> np.ndarray:
    feature = problem.det_feature * (problem.det_score[:, None] if weighted else 1)
    similarity = feature @ problem.query_feature[query]
    own = problem.query_frame[query]
    searched = [d for d in range(len(feature)) if problem.det_frame[d] != own and problem.det_score[d] >= 0.5]
    best = sorted(searched, key=lambda d: -similarity[d])[:k1]
    # Of the query's frame no score counts, even where those of the gallery do.
    context = [problem.det_feature[d] for d in range(len(feature)) if problem.det_frame[d] == own]
    persons = np.array([problem.query_feature[query], *context][:k2])
    rescored = similarity.copy()
    for frame in {problem.det_frame[d] for d in best}:
        seen = [d for d in searched if problem.det_frame[d] == frame]
        pairs = best_assignment(persons @ feature[seen].T)
        for person, place in pairs:
            if person == 0:
                rescored[seen[place]] = max(float(persons[i] @ feature[seen[j]]) for i, j in pairs)
    return rescored


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("k1, k2", [(1, 1), (3, 2), (5, 4), (30, 4)])
def test_cbgm_matches_all_assignments_tried_out(slow, weighted, k1, k2):
    changed = False
    for seed in range(6):
        problem = random_problem(seed)
        plain = evaluate_search(problem, SearchOptions(score_weighted=weighted))
        result = evaluate_search(
            problem, SearchOptions(score_weighted=weighted, context_matching=ContextMatching(k1, k2))
        )
        changed |= not np.allclose(plain.best_similarity, result.best_similarity)
        for query in range(2):
            similarity = slow_similarity(problem, query, k1, k2, weighted)
            ap, rank, best = slow.query(problem, query, slow.gallery(problem, query), similarity)
            assert (result.ap[query], result.first_hit[query]) == pytest.approx((ap, rank))
            assert result.best_detection[query, : len(best)].tolist() == [detection for detection, _ in best]
    assert changed == (k2 > 1)  # alone, the query keeps its similarities


def test_scores_of_the_context_change_nothing_in_a_weighted_search():
    for seed in range(3):
        problem = random_problem(seed)
        problem = replace(problem, query_frame=np.array([0, 0]))  # both from the frame that neither searches
        score = problem.det_score.copy()
        own = problem.det_frame == 0
        score[own] = np.where(score[own] == 1, 0.5, 1.0)
        options = SearchOptions(score_weighted=True, context_matching=ContextMatching(30, 4))
        results = [
            evaluate_search(with_galleries(p, {"all": own_frame_galleries(p, False)}), options)
            for p in (problem, replace(problem, det_score=score))
        ]
        np.testing.assert_array_equal(results[0].best_similarity, results[1].best_similarity)
        np.testing.assert_array_equal(results[0].ap, results[1].ap)


def test_the_query_s_own_detection_is_no_context(golden_problem):
    # In the golden problem the query's own detection takes the query's match in many a frame.
    kept = evaluate_search(golden_problem, SearchOptions(context_matching=ContextMatching()))
    dropped = evaluate_search(golden_problem, SearchOptions(context_matching=ContextMatching(query_nms=0.5)))
    assert dropped.mAP > kept.mAP + 0.05


def test_query_nms_leaves_out_what_overlaps_the_query(slow):
    problem = random_problem(0)
    away = np.flatnonzero(problem.det_frame == 0)[1]  # all boxes equal the query's but this one
    box = problem.det_box.copy()
    box[away] += 100
    without = np.flatnonzero((problem.det_frame != 0) | (np.arange(len(box)) == away))
    names = ("det_frame", "det_score", "det_feature")
    reduced = replace(problem, det_box=box[without], **{name: getattr(problem, name)[without] for name in names})
    expected = evaluate_search(reduced, SearchOptions(context_matching=ContextMatching()))
    options = SearchOptions(context_matching=ContextMatching(query_nms=0.5))
    result = evaluate_search(replace(problem, det_box=box), options)
    assert result.ap[0] == expected.ap[0]
    np.testing.assert_allclose(result.best_similarity[0], expected.best_similarity[0])


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="CBGM.QUERY_NMS is 2"):
        ContextMatching(query_nms=2)
    with pytest.raises(ConfigError, match="CBGM.K1 is 0"):
        ContextMatching(k1=0)
    with pytest.raises(ConfigError, match="CBGM.K2 is 0"):
        ContextMatching(k2=0)
