"""The backbone as it starts, searched on the same boxes as the trained network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from person_search.data.registration import registered_records
from person_search.engine import PersonSearchTrainer
from person_search.engine.testing import backbone_features
from person_search.errors import CheckpointError
from person_search.evaluation.problem import SearchProblem, own_frame_galleries, with_galleries
from person_search.evaluation.protocols import ImageOutput

NAME = "synthetic_tiny_test"


@pytest.fixture
def start(cfg, tmp_path):
    """A config whose control is a network of seed 5, and that network."""
    cfg.merge_from_list(["MODEL.WEIGHTS", "", "TEST.PERSON_SEARCH.CONTROL_WEIGHTS", str(tmp_path / "start.pth")])
    torch.manual_seed(5)
    model = build_model(cfg).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "start.pth")
    return cfg, model


def problem_of(records) -> SearchProblem:
    annotations = [(frame, a) for frame, record in enumerate(records) for a in record["annotations"]][::-1]
    frame = np.array([f for f, _ in annotations])
    box = np.array([a["bbox"] for _, a in annotations])
    person = np.array([a["person_id"] for _, a in annotations])
    known = np.flatnonzero(person >= 0)[::4]
    problem = SearchProblem(
        det_frame=frame, det_box=box.astype(np.float32), det_score=np.ones(len(box)),
        det_feature=np.eye(len(box), 3) + 1, frame_name=tuple(r["image_id"] for r in records), gt_frame=frame,
        gt_box=box, gt_person_id=person, query_frame=frame[known], query_box=box[known],
        query_person_id=person[known], query_feature=np.eye(len(known), 3) + 1,
    )  # fmt: skip
    return with_galleries(problem, {"all_frames": own_frame_galleries(problem, cross_camera=False)})


def test_its_features_are_what_the_embedding_would_read(start):
    cfg, model = start
    records = registered_records(NAME)
    problem = problem_of(records)
    found = backbone_features(cfg, NAME, problem)
    assert found.detections.shape[0] == len(problem.det_frame)
    np.testing.assert_allclose(np.linalg.norm(found.detections, axis=1), 1, atol=1e-5)
    (batch,) = [
        b for b in PersonSearchTrainer.build_test_loader(cfg, NAME) if b[0]["image_id"] == records[3]["image_id"]
    ]
    own = np.flatnonzero(problem.det_frame == 3)
    scale = batch[0]["image"].shape[1] / records[3]["height"]
    with torch.inference_mode():
        features = model.backbone(model.preprocess_image(batch).tensor)
        pooled = model.roi_heads.pool_boxes(features, [Boxes(torch.tensor(problem.det_box[own]) * scale)])
    expected = F.normalize(torch.cat([F.normalize(part, dim=1) for part in pooled], dim=1), dim=1)
    np.testing.assert_allclose(found.detections[own], expected.numpy(), atol=1e-4)
    # A query is the box that it was drawn around.
    for query, frame in enumerate(problem.query_frame):
        same = (problem.det_frame == frame) & (problem.det_box == problem.query_box[query].astype(np.float32)).all(
            axis=1
        )
        np.testing.assert_allclose(found.queries[query], found.detections[same][0], atol=1e-4)


def test_the_evaluator_shows_it_beside_the_others(start):
    cfg, _ = start
    evaluator = PersonSearchTrainer.build_evaluator(cfg, NAME)
    for record in registered_records(NAME):
        found = np.array([annotation["bbox"] for annotation in record["annotations"]], np.float32).reshape(-1, 4)
        given = evaluator.given_boxes_by_image[record["image_id"]]
        features = [np.ones((len(boxes), 3), np.float32) for boxes in (found, given)]
        evaluator.collect({record["image_id"]: ImageOutput(found, np.ones(len(found), np.float32), *features)})
    figures = evaluator.evaluate()
    controls = [name for name in figures if name.startswith("control_")]
    assert controls == ["control_random", "control_color_histogram", "control_backbone"]
    assert 0 < figures["control_backbone"]["mAP"] <= 100


def test_weights_that_do_not_exist_are_named(start):
    cfg, _ = start
    cfg.TEST.PERSON_SEARCH.CONTROL_WEIGHTS = "gone.pth"
    with pytest.raises(CheckpointError, match="gone.pth"):
        backbone_features(cfg, NAME, problem_of(registered_records(NAME)))
