"""When a detection counts as the person: values worked out by hand, at and beside the thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from person_search.evaluation.detections import iou_threshold
from person_search.evaluation.metrics import evaluate_detection, evaluate_search
from person_search.evaluation.problem import SearchProblem, own_frame_galleries, with_galleries


def problem_of(detections, truth, person: int = 3, similarity=None) -> SearchProblem:
    """A query of a person in frame 0, the person's box `truth` in each further frame, and a row of detections there.

    Args:
        detections: for each frame its boxes.
        similarity: of all detections to the query, in order; None: 1.
    """
    frame = np.repeat(np.arange(1, len(detections) + 1), [len(boxes) for boxes in detections])
    value = np.ones(len(frame)) if similarity is None else np.array(similarity)
    persons = len(detections) + 1
    problem = SearchProblem(
        det_frame=frame, det_box=np.array([b for boxes in detections for b in boxes], np.float32).reshape(-1, 4),
        det_score=np.ones(len(frame), np.float32), det_feature=np.stack([value, 1 - value], 1).astype(np.float32),
        frame_name=tuple(f"{i}.jpg" for i in range(persons)), gt_frame=np.arange(persons),
        gt_box=np.array([truth] * persons, float), gt_person_id=np.full(persons, person), query_frame=np.array([0]),
        query_box=np.array([truth], float), query_person_id=np.array([person]),
        query_feature=np.array([[1.0, 0.0]], np.float32),
    )  # fmt: skip
    return with_galleries(problem, {"all": own_frame_galleries(problem, False)})


def test_thresholds_of_small_and_large_boxes():
    boxes = np.array([(0, 0, 10, 10), (5, 5, 10, 25), (0, 0, 100, 200), (3, 3, 3, 9)], float)
    assert iou_threshold(boxes) == pytest.approx([100 / 400, 100 / (15 * 30), 0.5, 0])


@pytest.mark.parametrize(
    ("truth", "detection", "found"),
    [
        ((0, 0, 40, 80), (0, 0, 40, 40), True),  # IoU 0.5 reaches the threshold of 0.5
        ((0, 0, 40, 80), (0, 0, 40, 39), False),
        ((0, 0, 10, 10), (0, 0, 10, 2.5), True),  # so does 0.25 that of a small box
        ((0, 0, 10, 10), (0, 0, 10, 2.4), False),
    ],
)
def test_a_detection_at_the_threshold_is_a_match(truth, detection, found):
    assert evaluate_search(problem_of([[detection]], truth)).top1 == found


def test_true_positives_of_equal_similarity_share_the_first_rank():
    """One wrong detection is as similar as two true positives: it comes first, and either of them is second."""
    person, other = (0, 0, 40, 80), (100, 0, 140, 80)
    result = evaluate_search(problem_of([[person, other], [person]], person))
    assert result.first_hit.tolist() == [2]
    assert result.ap == pytest.approx([2 / 3])


def test_detection_at_the_threshold_in_single_precision():
    """1e-9 below an IoU of 0.5 rounds to it; 1e-6 below does not."""
    for short, recall in ((4e-7, 0.5), (1e-3, 0.0)):
        problem = problem_of([[(0, 0, 40, 40)]], (0, 0, 40, 80 + short))
        assert evaluate_detection(problem).recall == recall


def test_person_zero_has_an_identity():
    result = evaluate_detection(problem_of([[(0, 0, 40, 80)]], (0, 0, 40, 80), person=0))
    assert (result.num_labelled, result.recall_labelled) == (2, 0.5)
