"""Inputs of the model."""

from __future__ import annotations

import torch
from detectron2.structures import Boxes, Instances


def scene() -> dict:
    """Input of the model: noise of 96 x 128 pixels with two persons, who are rows 3 and 1 of the memory banks."""
    instances = Instances((96, 128))
    instances.gt_boxes = Boxes(torch.tensor([[10.0, 10.0, 40.0, 80.0], [60.0, 20.0, 90.0, 90.0]]))
    instances.gt_classes = torch.zeros(2, dtype=torch.int64)
    instances.gt_instance_index = torch.tensor([3, 1])
    image = torch.randint(0, 256, (3, 96, 128), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": 96, "width": 128, "file_name": "scene.png"}
