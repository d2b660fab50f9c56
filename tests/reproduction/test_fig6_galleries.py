"""Galleries of rising size: what they hold, and that the largest gives the figures of the whole problem."""

from __future__ import annotations

import numpy as np
import pytest
from person_search.evaluation import SearchOptions, SearchProblem, evaluate_search
from person_search.evaluation.problem import own_frame_galleries, with_galleries
from person_search.reproduction.fig6_galleries import has_sizes, map_by_size, nested_galleries, searched_frames


@pytest.fixture(params=["all_cameras", "cross_camera"])
def problem(request) -> SearchProblem:
    """Thirty frames of two cameras with two of ten persons each; detections are the boxes, features noisy."""
    rng = np.random.default_rng(3)
    frames = 30
    person = np.array([rng.permutation(10)[:2] for _ in range(frames)]).ravel()
    frame = np.repeat(np.arange(frames), 2)
    box = np.tile([[0.0, 0, 40, 90], [100, 0, 140, 90]], (frames, 1))
    centre = rng.normal(size=(10, 8))
    feature = centre[person] + rng.normal(size=(2 * frames, 8))
    feature = (feature / np.linalg.norm(feature, axis=1, keepdims=True)).astype(np.float32)
    query = np.arange(0, 2 * frames, 3)
    problem = SearchProblem(
        det_frame=frame, det_box=box, det_score=np.full(2 * frames, 0.9, np.float32), det_feature=feature,
        frame_name=tuple(f"f{i}" for i in range(frames)), gt_frame=frame, gt_box=box, gt_person_id=person,
        query_frame=frame[query], query_box=box[query], query_person_id=person[query], query_feature=feature[query],
        frame_camera=np.arange(frames) % 2,
    )  # fmt: skip
    return with_galleries(problem, {"main": own_frame_galleries(problem, request.param == "cross_camera")})


def test_a_gallery_holds_what_it_says(problem):
    galleries = problem.galleries["main"]
    reduced, sizes = nested_galleries(problem, [4, 6, 9], targets=3)
    assert sizes == [4, 6, 9] and set(reduced.galleries) == {"4", "6", "9"}
    assert len(reduced.query_frame) > 5
    for query in range(len(reduced.query_frame)):
        whole = next(
            q for q in range(len(problem.query_frame))
            if problem.query_frame[q] == reduced.query_frame[query]
            and (problem.query_box[q] == reduced.query_box[query]).all()
        )  # fmt: skip
        shown = {
            int(f) for f, p in zip(problem.gt_frame, problem.gt_person_id, strict=True)
            if p == problem.query_person_id[whole] and f in searched_frames(problem, galleries, whole)
        }  # fmt: skip
        last: set[int] = set()
        for size in sizes:
            gallery = reduced.galleries[str(size)]
            frames = set(searched_frames(reduced, gallery, query).tolist())
            assert len(frames) == size and last <= frames and reduced.query_frame[query] not in frames
            targets = gallery.target_frame[gallery.target_offset[query] : gallery.target_offset[query + 1]]
            assert set(targets.tolist()) == frames & shown and len(targets) == min(3, len(shown)) > 0
            assert gallery.target_count[query] == len(targets)
            last = frames


def test_all_frames_and_all_matches_are_the_whole_problem(problem):
    options = SearchOptions(0.5, True)
    galleries = problem.galleries["main"]
    counts = [len(searched_frames(problem, galleries, q)) for q in range(len(problem.query_frame))]
    reduced, _ = nested_galleries(problem, [min(counts)], targets=1000)
    assert len(set(counts)) == 1
    ap = evaluate_search(problem, options).ap
    np.testing.assert_allclose(evaluate_search(reduced, options).ap, ap[~np.isnan(ap)])


def test_the_sizes_are_chosen_from_the_data(problem):
    curve = map_by_size(problem, SearchOptions(0.5, True))
    assert list(curve) == sorted(curve) and len(curve) > 2 and min(curve) <= 10
    # Galleries only gain distractors, so no query can become better.
    values = list(curve.values())
    assert all(a >= b for a, b in zip(values, values[1:], strict=False)) and values[0] > values[-1]
    assert map_by_size(problem, SearchOptions(0.5, True)) == curve


def test_galleries_of_the_protocol_count_where_there_are_some(problem):
    nested, _ = nested_galleries(problem, [5, 8])
    assert has_sizes(nested) and not has_sizes(problem)
    curve = map_by_size(nested, SearchOptions(0.5, True))
    assert curve == {
        size: pytest.approx(100 * evaluate_search(nested, SearchOptions(0.5, True), str(size)).mAP) for size in (5, 8)
    }
