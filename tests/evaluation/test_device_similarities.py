"""Ranking on a device of PyTorch against NumPy, on similarities that both compute exactly."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from person_search.evaluation import device_similarities
from person_search.evaluation.metrics import SearchOptions, evaluate_galleries
from person_search.evaluation.problem import Galleries, SearchProblem, offsets_of, own_frame_galleries, with_galleries
from person_search.evaluation.rescoring import ContextMatching, Reranking


@pytest.fixture(scope="module")
def problem(scattered) -> SearchProblem:
    """Features of small whole numbers: similarities are exact in every order of summation, and many are equal."""
    rng = np.random.default_rng(1)
    frames, detections, queries = 200, 1500, 40
    arguments, _, _ = scattered(rng, frames, 600, 30, detections, queries)
    made = SearchProblem(
        **arguments,
        det_score=rng.choice(np.float32([0.25, 0.5, 0.75, 1]), detections),
        det_feature=rng.integers(-4, 5, (detections, 12)).astype(np.float32),
        query_feature=rng.integers(-4, 5, (queries, 12)).astype(np.float32) * (np.arange(queries) != 7)[:, None],
        frame_camera=rng.integers(1, 4, frames),
    )
    everywhere = own_frame_galleries(made, cross_camera=False)
    listed = [rng.choice(frames, size, replace=False) for size in rng.integers(3, 60, queries)]
    return with_galleries(made, {
        "all": everywhere,
        "cross": own_frame_galleries(made, cross_camera=True),
        "listed": _listed(everywhere, listed),
    })  # fmt: skip


def _listed(galleries: Galleries, frames: list[np.ndarray]) -> Galleries:
    """Galleries of the given frames, with those that show the person among them."""
    targets = np.split(galleries.target_frame, galleries.target_offset[1:-1])
    frames = [np.unique(np.concatenate(pair)) for pair in zip(frames, targets, strict=True)]
    offset = offsets_of([len(listed) for listed in frames])
    return replace(galleries, excluded_frame=None, frame_offset=offset, frame=np.concatenate(frames).astype(np.int32))


@pytest.mark.parametrize("block", [1, 7, 10_000])
@pytest.mark.parametrize("options", [
    SearchOptions(),
    SearchOptions(score_weighted=True),
    SearchOptions(score_threshold=0.0),
    SearchOptions(score_threshold=1.0),
    SearchOptions(context_matching=ContextMatching(20, 3)),
    SearchOptions(reranking=Reranking(shortlist=30)),
], ids=["plain", "weighted", "all detections", "few detections", "context", "re-ranking"])  # fmt: skip
def test_every_number_is_that_of_numpy(problem, options, block, device, monkeypatch):
    if block != 7 and (options.context_matching or options.reranking):
        pytest.skip("slow, and both work query by query")
    expected = evaluate_galleries(problem, options)
    monkeypatch.setattr(device_similarities, "BLOCK_SIZE", block * len(problem.det_frame))
    found = evaluate_galleries(problem, options, device=device)
    assert list(found) == ["all", "cross", "listed"]
    for name, result in found.items():
        assert result.num_evaluated > 20 and result.mAP > 0
        for part in fields(result):
            np.testing.assert_array_equal(getattr(result, part.name), getattr(expected[name], part.name), part.name)


def test_without_detections(problem, device):
    empty = {name: getattr(problem, name)[:0] for name in ("det_frame", "det_box", "det_score", "det_feature")}
    for result in evaluate_galleries(replace(problem, **empty), device=device).values():
        assert result.mAP == 0 and (result.best_detection == -1).all()


def test_tf32_of_training_does_not_reach_the_figures(problem, gpu, matmul):
    matmul.allow_tf32 = True
    large = replace(problem, det_feature=problem.det_feature * 1025, query_feature=problem.query_feature * 1025)
    expected, found = evaluate_galleries(large), evaluate_galleries(large, device=gpu)
    np.testing.assert_array_equal(found["all"].best_similarity, expected["all"].best_similarity)
    assert matmul.allow_tf32
