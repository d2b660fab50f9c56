"""Crops of a batch against Eq. 1 computed pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from person_search.modeling.exemplars import PersonCrops
from torch import Tensor


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
    images = torch.randn(2, 3, 30, 40, generator=generator)
    masks = torch.rand(2, 30, 40, generator=generator) < 0.6
    boxes = torch.tensor([[3.2, 4.9, 15.1, 28.0], [20.0, 0.0, 40.0, 30.0], [0.0, 2.0, 9.7, 12.0]])
    windows = [(slice(4, 28), slice(3, 16)), (slice(0, 30), slice(20, 40)), (slice(2, 12), slice(0, 10))]
    # The second image is smaller than the batch and has no masks.
    got = PersonCrops(images, [boxes[:2], boxes[2:]], [(30, 40), (28, 33)], [masks, None]).resized(size)
    full = [images[0] * masks[0], images[0] * masks[1], images[1]]
    for i, (rows, columns) in enumerate(windows):
        np.testing.assert_allclose(got[i].numpy(), bilinear(full[i][:, rows, columns].numpy(), size), atol=1e-5)


def test_filtered_background_takes_its_color():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 30, 40, generator=generator)
    mask, color = torch.rand(1, 30, 40, generator=generator) < 0.6, torch.tensor([-2.0, 0.5, 3.0])
    boxes = [torch.tensor([[3.0, 4.0, 16.0, 28.0]]), torch.tensor([[0.0, 2.0, 10.0, 12.0]])]
    # Of an image without masks all stays.
    crops = PersonCrops(images, boxes, [(30, 40), (28, 33)], [mask, None], color)
    filtered = torch.where(mask, images[0], color[:, None, None])[:, 4:28, 3:16]
    windows = [filtered, images[1][:, 2:12, 0:10]]
    for got, window in zip(crops.resized((31, 17)), windows, strict=True):
        np.testing.assert_allclose(got.numpy(), bilinear(window.numpy(), (31, 17)), atol=1e-5)
    cut = crops.cut([0], (32, 20))
    assert torch.equal(cut[0, :, :24, :13], filtered) and not cut[0, :, 24:].any() and not cut[0, :, :, 13:].any()


@pytest.mark.parametrize("background", ["black", "mean"])
def test_the_background_of_the_config_is_black_before_normalization(narrow_cfg: CfgNode, background):
    narrow_cfg.SSL.EXEMPLAR.BACKGROUND = background
    model = build_model(narrow_cfg)
    black = model.preprocess_image([{"image": torch.zeros(3, 32, 32, dtype=torch.uint8)}]).tensor
    mean = model.preprocess_image([{"image": model.pixel_mean.expand(3, 32, 32)}]).tensor
    branch, mask = model.exemplar_branch, torch.zeros(1, 32, 32, dtype=torch.bool)
    target = Instances((32, 32), gt_masks=BitMasks(mask))
    box = torch.tensor([[0.0, 0.0, 32.0, 32.0]])
    crop = branch.crops(torch.randn(1, 3, 32, 32), [target], [box]).resized((32, 32))
    torch.testing.assert_close(crop, black if background == "black" else mean)


def cut_one(image: Tensor, box: Tensor, size: tuple[int, int], mask: Tensor | None) -> Tensor:
    """One crop by slicing."""
    x0, y0 = (min(max(int(v.floor()), 0), s - 1) for v, s in zip(box[:2], (size[1], size[0]), strict=True))
    x1, y1 = (max(min(int(v.ceil()), s), o + 1) for v, s, o in zip(box[2:], (size[1], size[0]), (x0, y0), strict=True))
    window = image if mask is None else image * F.pad(mask, (0, image.shape[2] - size[1], 0, image.shape[1] - size[0]))
    return window[:, y0:y1, x0:x1]


@given(counts=st.lists(st.integers(0, 4), min_size=1, max_size=3), masked=st.booleans(), seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_a_batch_equals_one_crop_after_the_other(device, counts, masked, seed):
    random = torch.Generator().manual_seed(seed)
    images = torch.randn(len(counts), 2, 24, 20, generator=random)
    sizes = [
        (int(torch.randint(1, 25, (), generator=random)), int(torch.randint(1, 21, (), generator=random)))
        for _ in counts
    ]
    # Boxes inside, across and beyond the border.
    boxes = [torch.rand(n, 4, generator=random) * 30 - 5 for n in counts]
    boxes = [torch.cat([torch.minimum(b[:, :2], b[:, 2:]), torch.maximum(b[:, :2], b[:, 2:])], dim=1) for b in boxes]
    masks = [torch.rand(n, *s, generator=random) < 0.5 if masked else None for n, s in zip(counts, sizes, strict=True)]
    crops = PersonCrops(images.to(device), [b.to(device) for b in boxes], sizes, masks)
    expected = [
        cut_one(image, box, size, None if mask is None else mask[i])
        for image, group, size, mask in zip(images, boxes, sizes, masks, strict=True)
        for i, box in enumerate(group)
    ]
    assert crops.sizes == [tuple(e.shape[1:]) for e in expected] and len(crops) == sum(counts)
    resized = crops.resized((7, 4)).cpu()
    assert resized.shape == (sum(counts), 2, 7, 4)
    for own, one in zip(expected, resized, strict=True):
        torch.testing.assert_close(one, F.interpolate(own[None], size=(7, 4), mode="bilinear")[0], atol=1e-5, rtol=1e-5)
    chosen = list(range(sum(counts)))[::-2]
    cut = crops.cut(chosen, (25, 26)).cpu()
    for i, one in zip(chosen, cut, strict=True):
        assert torch.equal(one, F.pad(expected[i], (0, 26 - expected[i].shape[2], 0, 25 - expected[i].shape[1])))


def test_crops_of_boxes_at_and_outside_the_border_have_a_pixel_at_least():
    image = torch.arange(12.0).reshape(1, 1, 3, 4)
    boxes = torch.tensor([[3.9, 2.9, 4.0, 3.0], [4.0, 3.0, 4.0, 3.0], [-2.0, -2.0, 1.0, 1.0]])
    crops = PersonCrops(image, [boxes], [(3, 4)], [None])
    assert crops.sizes == [(1, 1)] * 3
    assert crops.cut([0, 1, 2], (1, 1)).flatten().tolist() == [11.0, 11.0, 0.0]
