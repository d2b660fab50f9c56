"""Exemplars against Eq. 1 computed pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from person_search.modeling.exemplar_branch import crop_persons, resize_crops, running_statistics
from torch import nn


def bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resizing with aligned pixel centres and repeated borders."""
    channels, height, width = image.shape
    result = np.zeros((channels, *size))
    for y in range(size[0]):
        for x in range(size[1]):
            sy = min(max((y + 0.5) * height / size[0] - 0.5, 0), height - 1)
            sx = min(max((x + 0.5) * width / size[1] - 0.5, 0), width - 1)
            y0, x0 = int(sy), int(sx)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            dy, dx = sy - y0, sx - x0
            top = image[:, y0, x0] * (1 - dx) + image[:, y0, x1] * dx
            bottom = image[:, y1, x0] * (1 - dx) + image[:, y1, x1] * dx
            result[:, y, x] = top * (1 - dy) + bottom * dy
    return result


@pytest.mark.parametrize("size", [(5, 3), (16, 8), (31, 17)])
def test_masked_crops_are_resized_as_in_equation_1(size):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(3, 30, 40, generator=generator)
    masks = torch.rand(2, 30, 40, generator=generator) < 0.6
    boxes = torch.tensor([[3.2, 4.9, 15.1, 28.0], [20.0, 0.0, 40.0, 30.0]])
    windows = [(slice(4, 28), slice(3, 16)), (slice(0, 30), slice(20, 40))]
    got = resize_crops(crop_persons(image, boxes, masks), size)
    for i, (rows, columns) in enumerate(windows):
        masked = (image * masks[i])[:, rows, columns].numpy()
        np.testing.assert_allclose(got[i].numpy(), bilinear(masked, size), atol=1e-5)


def test_crops_of_boxes_at_and_outside_the_border_have_a_pixel_at_least():
    image = torch.arange(12.0).reshape(1, 3, 4)
    boxes = torch.tensor([[3.9, 2.9, 4.0, 3.0], [4.0, 3.0, 4.0, 3.0], [-2.0, -2.0, 1.0, 1.0]])
    crops = crop_persons(image, boxes, None)
    assert [tuple(c.shape) for c in crops] == [(1, 1, 1)] * 3
    assert [c.item() for c in crops] == [11.0, 11.0, 0.0]


def test_without_a_mask_the_background_stays():
    image = torch.ones(3, 10, 10)
    (crop,) = crop_persons(image, torch.tensor([[2.0, 2.0, 6.0, 8.0]]), None)
    assert crop.shape == (3, 6, 4) and bool((crop == 1).all())


def test_exemplars_leave_the_running_statistics_alone():
    module = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3).eval())
    before = module[0].running_mean.clone()
    with running_statistics(module):
        module(torch.randn(2, 3, 4, 4) + 5)
    assert torch.equal(module[0].running_mean, before)
    assert [m.training for m in module] == [True, False]
