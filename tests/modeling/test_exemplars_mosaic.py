"""Mosaics against one pass for each image."""

from __future__ import annotations

import itertools

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from hypothesis import given
from hypothesis import strategies as st
from person_search.modeling.backbone import build_res5
from person_search.modeling.exemplars import Mosaic, arrange, kept_apart, looks_at_other_pixels
from torch import Tensor, nn

SIZES = [(30, 17), (97, 41), (64, 64), (5, 3), (1, 1), (33, 90), (64, 32), (130, 40)]


def random_network(cfg: CfgNode, device: str) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    modules = build_backbone(cfg).eval().double(), build_res5(cfg).eval().double()
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):  # so that nothing between the images stays zero by itself
                nn.init.uniform_(layer.bias, 0.1, 0.9)
                nn.init.uniform_(layer.running_mean, -0.5, 0.5)
    return modules[0].to(device), modules[1].to(device)


def random_images(sizes: list[tuple[int, int]], device: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(3, *size, generator=generator, dtype=torch.float64).to(device) for size in sizes]


@pytest.mark.parametrize("stride_in_1x1", [True, False])
def test_each_image_passes_as_if_it_were_alone(narrow_cfg, device, stride_in_1x1):
    narrow_cfg.MODEL.RESNETS.STRIDE_IN_1X1 = stride_in_1x1
    backbone, res5 = random_network(narrow_cfg, device)
    images = random_images(SIZES, device)
    mosaic = Mosaic(images)
    with kept_apart([backbone, res5], mosaic):
        res4 = backbone(mosaic.picture)["res4"]
        found = mosaic.pool_maximum(res4), mosaic.pool_maximum(res5(res4))
    unmasked = mosaic.pool_maximum(backbone(mosaic.picture)["res4"])
    alone = [backbone(image[None])["res4"] for image in images]
    expected = [torch.cat([f.amax(dim=(2, 3)) for f in features]) for features in (alone, [res5(f) for f in alone])]
    for got, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-9)
    # The comparison has teeth: without the masks something else comes out.
    assert not torch.allclose(unmasked, found[0], rtol=1e-2, atol=1e-2)
    # And so do the gradients.
    weight = res5[0].conv1.weight
    slopes = [torch.autograd.grad(sum(v.square().sum() for v in values), weight)[0] for values in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-9)


def test_the_hooks_are_gone_afterwards(narrow_cfg):
    backbone, _ = random_network(narrow_cfg, "cpu")
    images = random_images([(40, 40), (50, 20)], "cpu")
    mosaic = Mosaic(images)
    before = backbone(mosaic.picture)["res4"]
    with kept_apart([backbone], mosaic):
        assert not torch.equal(backbone(mosaic.picture)["res4"], before)
    assert torch.equal(backbone(mosaic.picture)["res4"], before)


@given(st.lists(st.tuples(st.integers(1, 900), st.integers(1, 400)), min_size=1, max_size=40))
def test_images_lie_inside_at_whole_cells_and_apart(sizes):
    layout = arrange(sizes)
    assert layout.size[0] % 128 == 0 == layout.size[1] % 256 and len(layout.corners) == len(sizes)
    for (top, left), (height, width) in zip(layout.corners, sizes, strict=True):
        assert top % 32 == 0 == left % 32 and min(top, left) >= 0
        assert top + height <= layout.size[0] and left + width <= layout.size[1]
    ends = [
        (top - (-height // 32) * 32, left - (-width // 32) * 32)
        for (top, left), (height, width) in zip(layout.corners, sizes, strict=True)
    ]
    for i, j in itertools.combinations(range(len(sizes)), 2):
        apart = [
            max(layout.corners[i][axis], layout.corners[j][axis]) - min(ends[i][axis], ends[j][axis]) for axis in (0, 1)
        ]
        assert max(apart) >= 32


@pytest.mark.parametrize("persons", [1, 3, 6, 20])
def test_mosaics_of_the_papers_scales_waste_little(persons):
    generator = torch.Generator().manual_seed(persons)
    heights = torch.randint(60, 700, (persons,), generator=generator).tolist()
    sizes = [size for height in heights for size in ((112, 48), (224, 96), (448, 192), (height, height * 2 // 5))]
    height, width = arrange(sizes).size
    assert height * width < 2 * sum(h * w for h, w in sizes) + 256 * 1024
    # A canvas for each that holds the largest would take far more.
    largest = max(448, *heights) * max(192, *(h * 2 // 5 for h in heights))
    assert persons == 1 or height * width < 0.8 * largest * len(sizes)


@pytest.mark.parametrize(("layer", "expected"), [(nn.GroupNorm(1, 3), True), (nn.BatchNorm2d(3), False)])
def test_layers_that_look_at_other_pixels(layer, expected):
    assert looks_at_other_pixels([nn.Sequential(nn.Conv2d(3, 3, 1), layer)]) is expected
