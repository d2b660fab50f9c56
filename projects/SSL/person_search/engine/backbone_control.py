"""The control "backbone as it starts": pooled features of a network without re-id training, for given boxes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from detectron2.utils.logger import log_every_n_seconds
from torch import nn

from ..data.loader import build_test_loader
from ..data.mapper import PersonSearchMapper
from ..data.training_set import registered_records
from ..evaluation.controls import BoxFeatures
from ..evaluation.problem import SearchProblem
from ..weights import PersonSearchCheckpointer

logger = logging.getLogger(__name__)


def backbone_features(cfg: CfgNode, dataset_name: str, problem: SearchProblem) -> BoxFeatures:
    """Features of a problem's boxes from the backbone with TEST.PERSON_SEARCH.CONTROL_WEIGHTS.

    The re-id head's pooled res4 and res5 features, each of unit length, side by side: what the embedding would read,
    and nothing that re-id training has touched.

    Args:
        cfg: a configuration with the project's keys; describes the network.
        dataset_name: the registered dataset that the problem was made from.
        problem: its boxes, in pixels of the original frames.

    Raises:
        CheckpointError: the weights cannot be loaded.
    """
    model = build_model(cfg).eval()
    PersonSearchCheckpointer(model).load(cfg.TEST.PERSON_SEARCH.CONTROL_WEIGHTS)
    numbers = {name: number for number, name in enumerate(problem.frame_name)}
    rows: list[tuple[np.ndarray, np.ndarray]] = [
        (np.flatnonzero(problem.det_frame == number), np.flatnonzero(problem.query_frame == number))
        for number in range(len(numbers))
    ]
    boxes = {
        name: np.concatenate([problem.det_box[rows[number][0]], problem.query_box[rows[number][1]]]).astype(np.float32)
        for name, number in numbers.items()
    }
    loader = build_test_loader(
        registered_records(dataset_name),
        PersonSearchMapper(cfg, False, given_boxes=boxes),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    detections = queries = np.zeros((0, 0), np.float32)
    for done, batch in enumerate(loader, 1):
        log_every_n_seconds(logging.INFO, f"Backbone as it starts: {done} of {len(numbers)} frames", n=10)
        for inputs, vectors in zip(batch, _pooled(model, batch), strict=True):
            if not queries.size:
                detections = np.zeros((len(problem.det_frame), vectors.shape[1]), np.float32)
                queries = np.zeros((len(problem.query_frame), vectors.shape[1]), np.float32)
            found, asked = rows[numbers[inputs["image_id"]]]
            detections[found], queries[asked] = vectors[: len(found)], vectors[len(found) :]
    return BoxFeatures(detections, queries)


@torch.inference_mode()
def _pooled(model: nn.Module, batch: Sequence[Mapping[str, Any]]) -> list[np.ndarray]:
    """For each image (n, C4 + C5) of its given boxes, rows of unit length."""
    images = model.preprocess_image(batch)
    features = model.backbone(images.tensor)
    boxes = [Boxes(inputs["given_boxes"].to(model.device)) for inputs in batch]
    pooled = model.roi_heads.pool_boxes(features, boxes)
    joined = torch.cat([F.normalize(part.float(), dim=1) for part in pooled], dim=1)
    return [part.cpu().numpy() for part in F.normalize(joined, dim=1).split([len(b) for b in boxes])]
