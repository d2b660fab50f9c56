"""The definitions of docs/evaluation.md once more, as slow and as plainly as possible, to compare with."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from person_search.evaluation.problem import SearchProblem
from person_search.evaluation.storage import load_problem
from sklearn.metrics import average_precision_score


def slow_iou(a, b) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def slow_gallery(problem, query: int, cross_camera: bool = False) -> dict[int, list | None]:
    """Every frame but the query's own -> the box of the person there, or None."""
    own = problem.query_frame[query]
    gallery = {}
    for frame in range(len(problem.frame_name)):
        if frame == own or (cross_camera and problem.frame_camera[frame] == problem.frame_camera[own]):
            continue
        boxes = [
            box
            for box, of, person in zip(problem.gt_box, problem.gt_frame, problem.gt_person_id, strict=True)
            if of == frame and person == problem.query_person_id[query]
        ]
        gallery[frame] = boxes[0] if boxes else None
    return gallery


def slow_similarity(problem, query: int, weighted: bool) -> list[float]:
    dots = [float(np.dot(feature, problem.query_feature[query])) for feature in problem.det_feature]
    return [dot * float(score) if weighted else dot for dot, score in zip(dots, problem.det_score, strict=True)]


def slow_query(problem, query: int, gallery, similarity, threshold: float = 0.5, num_targets: int | None = None):
    """AP (None without a match to find), rank of the first hit (0: none), and the ten best (detection, correct)."""
    entries = []  # (similarity, correct, detection)
    for frame, box in gallery.items():
        own = [d for d in range(len(problem.det_frame)) if problem.det_frame[d] == frame]
        own = sorted((d for d in own if problem.det_score[d] >= threshold), key=lambda d: (-similarity[d], d))
        hit = None
        if box is not None:
            w, h = box[2] - box[0], box[3] - box[1]
            least = min(0.5, w * h / ((w + 10) * (h + 10)))
            overlaps = [d for d in own if slow_iou(problem.det_box[d], box) >= max(least, 1e-9)]
            hit = overlaps[0] if overlaps else None
        entries += [(similarity[d], d == hit, d) for d in own]
    num_targets = sum(box is not None for box in gallery.values()) if num_targets is None else num_targets
    if not problem.query_feature[query].any():
        return (0.0 if num_targets else None), 0, []
    entries.sort(key=lambda e: (-e[0], e[1], problem.det_frame[e[2]], e[2]))
    correct = [e[1] for e in entries]
    ap = None
    if num_targets:
        recall = sum(correct) / num_targets
        ap = average_precision_score(correct, [e[0] for e in entries]) * recall if any(correct) else 0.0
    rank = correct.index(True) + 1 if any(correct) else 0
    return ap, rank, [(e[2], e[1]) for e in entries[:10]]


def slow_detection(problem, threshold: float = 0.5, labelled: bool = False) -> tuple[float, float]:
    """Recall and AP of all boxes, or of the labelled ones alone in the frames that have some."""
    truth, scores, found, boxes = [], [], 0, 0
    for frame in range(len(problem.frame_name)):
        gts = [b for b, f, p in zip(problem.gt_box, problem.gt_frame, problem.gt_person_id, strict=True)
               if f == frame and (p >= 0 or not labelled)]  # fmt: skip
        if labelled and not gts:
            continue
        dets = [d for d in range(len(problem.det_frame))
                if problem.det_frame[d] == frame and problem.det_score[d] >= threshold]  # fmt: skip
        iou = np.array([[slow_iou(g, problem.det_box[d]) for d in dets] for g in gts], np.float32)
        boxes += len(gts)
        for j, d in enumerate(dets):
            matched = [
                i
                for i in range(len(gts))
                if iou[i, j] >= 0.5 and i == int(iou[:, j].argmax()) and j == int(iou[i].argmax())
            ]
            found += len(matched)
            truth.append(bool(matched))
            scores.append(problem.det_score[d])
    recall = found / boxes
    return recall, average_precision_score(truth, scores) * recall if any(truth) else 0.0


@pytest.fixture(scope="session")
def golden_problem(shared) -> SearchProblem:
    """The golden search problem of PRW."""
    return load_problem(shared / "golden" / "search_prw.npz")


@pytest.fixture(scope="session")
def slow() -> SimpleNamespace:
    """The slow reference: `iou`, `gallery`, `similarity`, `query` and `detection`."""
    return SimpleNamespace(
        iou=slow_iou, gallery=slow_gallery, similarity=slow_similarity, query=slow_query, detection=slow_detection
    )


def scattered_scenes(
    rng: np.random.Generator, frames: int, boxes: int, persons: int, detections: int, queries: int
) -> tuple[dict, np.ndarray, np.ndarray]:
    """All of a `SearchProblem` but scores and features: upright boxes anywhere, detections a little off some of them.

    Returns the arguments, and the persons of the detections and of the queries (below 0: nobody's).
    """
    gt_frame, gt_person = np.sort(rng.integers(frames, size=boxes)), rng.integers(-1, persons, size=boxes)
    corner = rng.uniform(0, 900, (boxes, 2))
    gt_box = np.column_stack([corner, corner + (40, 90)])
    source, asked = rng.integers(boxes, size=detections), rng.choice(np.flatnonzero(gt_person >= 0), queries)
    arguments = {
        "det_frame": gt_frame[source],
        "det_box": (gt_box[source] + rng.uniform(-9, 9, (detections, 4))).astype(np.float32),
        "frame_name": tuple(map(str, range(frames))),
        "gt_frame": gt_frame, "gt_box": gt_box, "gt_person_id": gt_person,
        "query_frame": gt_frame[asked], "query_box": gt_box[asked], "query_person_id": gt_person[asked],
    }  # fmt: skip
    return arguments, gt_person[source], gt_person[asked]


@pytest.fixture(scope="session")
def scattered():
    return scattered_scenes
