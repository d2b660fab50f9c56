"""Deformable RoI pooling against RoIAlign and against a loop over its samples."""

from __future__ import annotations

import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from person_search.modeling import DeformableRoIPooler


def build() -> tuple[DeformableRoIPooler, ROIPooler]:
    plain = ROIPooler(4, (1 / 16,), 2, "ROIAlignV2")
    return DeformableRoIPooler(plain, 8, 4, 1 / 16), plain


FEATURE = torch.randn(2, 8, 12, 20, generator=torch.Generator().manual_seed(0))
BOXES = [
    Boxes(torch.tensor([[20.0, 30.0, 90.0, 150.0], [100.0, 10.0, 280.0, 170.0]])),
    Boxes(torch.tensor([[5.0, 5.0, 60.0, 60.0]])),
]


def test_starts_as_roi_align():
    deformable, plain = build()
    torch.testing.assert_close(deformable([FEATURE], BOXES), plain([FEATURE], BOXES), atol=1e-4, rtol=1e-4)


def test_a_common_offset_moves_the_box():
    deformable, plain = build()
    offsets = torch.zeros(2, 4, 4)
    offsets[0], offsets[1] = 0.1, -0.05
    with torch.no_grad():
        deformable.offset[-1].bias.copy_(offsets.flatten() / deformable.gamma)
    moved = []
    for boxes in BOXES:
        x0, y0, x1, y1 = boxes.tensor.unbind(1)
        shift = torch.stack([0.1 * (x1 - x0), -0.05 * (y1 - y0)] * 2, dim=1)
        moved.append(Boxes(boxes.tensor + shift))
    torch.testing.assert_close(deformable([FEATURE], BOXES), plain([FEATURE], moved), atol=1e-4, rtol=1e-4)


def test_offsets_learn():
    deformable, _ = build()
    torch.nn.init.normal_(deformable.offset[-1].weight, std=0.1)
    deformable([FEATURE], BOXES).square().sum().backward()
    assert deformable.offset[0].weight.grad.abs().sum() > 0


def test_no_boxes():
    deformable, _ = build()
    none = Boxes(torch.zeros(0, 4))
    assert deformable([FEATURE], [none, none]).shape == (0, 8, 4, 4)
