"""Galleries of listed frames, from none to all frames: against ranking all detections with the others masked."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from person_search.evaluation import metrics
from person_search.evaluation.detections import Members
from person_search.evaluation.metrics import evaluate_galleries
from person_search.evaluation.problem import SearchProblem, offsets_of, own_frame_galleries, with_galleries
from person_search.evaluation.ranking import rank

NUM_FRAMES, NUM_QUERIES = 160, 30


@pytest.fixture(scope="module")
def problem(scattered) -> SearchProblem:
    """Nearly all similarities differ; one query has no feature. The galleries have 1 to 160 frames, some ragged."""
    rng = np.random.default_rng(5)
    arguments, shown, asked = scattered(rng, NUM_FRAMES, 900, 20, 1600, NUM_QUERIES)
    center = rng.normal(size=(21, 16))
    made = SearchProblem(
        **arguments,
        det_score=rng.uniform(0.4, 1, 1600).astype(np.float32),
        det_feature=(center[shown] + 2 * rng.normal(size=(1600, 16))).astype(np.float32),
        query_feature=(center[asked] * (np.arange(NUM_QUERIES) != 4)[:, None]).astype(np.float32),
    )
    return with_galleries(made, _galleries(rng, made))


def _galleries(rng, problem: SearchProblem) -> dict:
    everywhere = own_frame_galleries(problem, cross_camera=False)
    sizes = {str(size): [size] * NUM_QUERIES for size in (1, 5, 10, 20, 40, 80, 90, 100, 120, NUM_FRAMES)}
    sizes |= {"ragged": rng.integers(0, NUM_FRAMES, NUM_QUERIES), "few": rng.integers(0, 9, NUM_QUERIES)}
    galleries = {"all": everywhere}
    for name, numbers in sizes.items():
        lists = [rng.permutation(NUM_FRAMES)[:number] for number in numbers]
        query = np.repeat(np.arange(NUM_QUERIES), np.diff(everywhere.target_offset))
        kept = np.array([frame in lists[q] for q, frame in zip(query, everywhere.target_frame, strict=True)])
        count = np.bincount(query[kept], minlength=NUM_QUERIES)
        galleries[name] = replace(
            everywhere, excluded_frame=None, target_offset=offsets_of(count), target_count=count,
            target_frame=everywhere.target_frame[kept], target_box=everywhere.target_box[kept],
            frame_offset=offsets_of(numbers), frame=np.concatenate(lists).astype(np.int32),
        )  # fmt: skip
    return galleries


def rank_masked(similarity, found, wanted, best):
    """`rank` of similarities that are -inf outside the gallery."""
    members: Members = found.members
    masked = [members.masked(found.first + row, own) for row, own in enumerate(similarity)]
    return rank(np.stack(masked), replace(found, members=None), wanted, best)


@pytest.mark.parametrize("kind", ["distinct", "ties", "all alike", "double"])
def test_every_number_is_that_of_masked_similarities(problem, kind, monkeypatch):
    if kind == "double":
        problem = replace(problem, det_feature=problem.det_feature.astype(np.float64))
    elif kind == "ties":
        problem = replace(problem, det_feature=problem.det_feature.round(), query_feature=problem.query_feature.round())
    elif kind == "all alike":
        alike = np.ones_like(problem.query_feature) * problem.query_feature.any(axis=1, keepdims=True)
        problem = replace(problem, det_feature=np.ones_like(problem.det_feature), query_feature=alike)
    monkeypatch.setattr(metrics, "_BLOCK_SIZE", 7 * 1600)
    names = list(problem.galleries)
    found = evaluate_galleries(problem)
    monkeypatch.setattr(metrics, "rank", rank_masked)
    expected = evaluate_galleries(problem)
    assert list(found) == list(expected) == names
    for name, result in found.items():
        for part in fields(result):
            np.testing.assert_array_equal(getattr(result, part.name), getattr(expected[name], part.name), part.name)


def test_without_detections_or_galleries(problem):
    empty = {name: getattr(problem, name)[:0] for name in ("det_frame", "det_box", "det_score", "det_feature")}
    for result in evaluate_galleries(replace(problem, **empty)).values():
        assert (result.best_detection == -1).all() and not result.first_hit.any()
    assert evaluate_galleries(problem, names=[]) == {}
