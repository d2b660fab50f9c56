"""Resizing as torchvision's detectors do, against torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import transforms as T
from person_search import add_ssl_config
from person_search.data.mapper import InterpolatedResize, PersonSearchMapper
from person_search.errors import ConfigError
from torchvision.models.detection.transform import GeneralizedRCNNTransform


# PRW's two sizes of frames, CUHK-SYSU's usual one, a tall one, and one whose scaled sides are not whole.
@pytest.mark.parametrize("size", [(1080, 1920), (576, 720), (600, 800), (800, 300), (333, 517)])
def test_images_and_boxes_are_torchvisions(size):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    boxes = np.array([[3.5, 10.0, 100.25, 290.0]])
    reference = GeneralizedRCNNTransform(900, 1500, [0.0] * 3, [1.0] * 3, size_divisible=1).eval()
    tensor = torch.from_numpy(image).permute(2, 0, 1).float()
    expected, targets = reference([tensor], [{"boxes": torch.tensor(boxes, dtype=torch.float32)}])

    transform = InterpolatedResize([900], 1500, "choice").get_transform(image)
    found = transform.apply_image(image)
    assert found.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(found).permute(2, 0, 1), expected.tensors[0], rtol=0, atol=1e-3)
    np.testing.assert_allclose(transform.apply_box(boxes), targets[0]["boxes"].numpy(), rtol=1e-6)


def test_pillow_would_give_another_image():
    image = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    ours = InterpolatedResize([100], 1500, "choice").get_transform(image).apply_image(image)
    pillow = T.ResizeShortestEdge([100], 1500, "choice").get_transform(image).apply_image(image)
    assert ours.shape == pillow.shape and np.abs(ours - pillow).mean() > 10


def test_masks_stay_masks_and_zero_leaves_the_image():
    mask = np.random.default_rng(0).integers(0, 2, (40, 60), dtype=np.uint8)
    resized = InterpolatedResize([20], 1500, "choice").get_transform(mask[..., None]).apply_segmentation(mask)
    assert resized.shape == (20, 30) and resized.dtype == np.uint8
    assert isinstance(InterpolatedResize([0], 1500, "choice").get_transform(mask[..., None]), T.NoOpTransform)


def test_lengths_come_from_a_range_or_a_choice():
    image = np.zeros((40, 50, 3), dtype=np.uint8)
    for style, lengths, expected in (("range", (30, 33), {30, 31, 32, 33}), ("choice", (30, 33), {30, 33})):
        resize = InterpolatedResize.like(T.ResizeShortestEdge(lengths, 200, style))
        assert {resize.get_transform(image).new_h for _ in range(60)} == expected


def test_the_config_chooses():
    cfg = get_cfg()
    add_ssl_config(cfg)
    for is_train in (True, False):
        cfg.INPUT.RESIZE = "pillow"
        assert type(PersonSearchMapper(cfg, is_train).augmentations.augs[0]) is T.ResizeShortestEdge
        cfg.INPUT.RESIZE = "torchvision"
        resize = PersonSearchMapper(cfg, is_train).augmentations.augs[0]
        expected = cfg.INPUT.MAX_SIZE_TRAIN if is_train else cfg.INPUT.MAX_SIZE_TEST
        assert type(resize) is InterpolatedResize and resize.max_size == expected
    cfg.INPUT.RESIZE = "opencv"
    with pytest.raises(ConfigError, match="INPUT.RESIZE is 'opencv', expected 'pillow' or 'torchvision'"):
        PersonSearchMapper(cfg, False)
