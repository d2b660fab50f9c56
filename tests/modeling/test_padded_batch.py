"""Padded batches against one pass for each image."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from hypothesis import given
from hypothesis import strategies as st
from person_search.modeling.padded_batch import (
    ValidArea,
    canvas_size,
    group_by_size,
    looks_at_other_pixels,
    padded_with_zeros,
    pool_maximum,
)
from person_search.modeling.resnet import build_res5
from torch import nn

SIZES = [(30, 17), (97, 41), (64, 64), (5, 3), (1, 1), (33, 90)]


def random_network(cfg: CfgNode) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    modules = build_backbone(cfg).eval().double(), build_res5(cfg).eval().double()
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm2d):  # so that nothing outside the images stays zero by itself
                nn.init.uniform_(layer.bias, 0.1, 0.9)
                nn.init.uniform_(layer.running_mean, -0.5, 0.5)
    return modules


def test_a_padded_batch_equals_each_image_alone(narrow_cfg, device):
    backbone, res5 = (module.to(device) for module in random_network(narrow_cfg))
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(3, *size, generator=generator, dtype=torch.float64).to(device) for size in SIZES]
    height, width = canvas_size(SIZES)
    assert (height, width) == (128, 96)
    canvas = torch.stack([F.pad(i, (0, width - i.shape[2], 0, height - i.shape[1])) for i in images])
    valid = ValidArea(SIZES, canvas)
    with torch.no_grad():
        with padded_with_zeros([backbone, res5], valid):
            res4 = backbone(canvas)["res4"]
            got4, got5 = pool_maximum(res4, valid), pool_maximum(res5(res4), valid)
        unmasked = backbone(canvas)["res4"]
        for i, image in enumerate(images):
            alone = backbone(image[None])["res4"]
            torch.testing.assert_close(got4[i], alone.amax(dim=(2, 3))[0], rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(got5[i], res5(alone).amax(dim=(2, 3))[0], rtol=1e-9, atol=1e-9)
    # The comparison has teeth: plain zero padding gives something else.
    assert not torch.allclose(unmasked.amax(dim=(2, 3)), got4, rtol=1e-2, atol=1e-2)


def test_the_hooks_are_gone_afterwards(narrow_cfg):
    backbone, _ = random_network(narrow_cfg)
    image = torch.randn(1, 3, 40, 40, dtype=torch.float64)
    before = backbone(image)["res4"]
    with padded_with_zeros([backbone], ValidArea([(8, 8)], torch.zeros(1, 3, 64, 64))):
        assert not torch.equal(backbone(F.pad(image, (0, 24, 0, 24)))["res4"][..., :3, :3], before)
    assert torch.equal(backbone(image)["res4"], before)


def cost(groups: list[list[int]], sizes: list[tuple[int, int]], pass_cost: float) -> float:
    """Pixels of all canvases, and of what the passes cost beside."""
    total = 0.0
    for group in groups:
        own = [sizes[i] for i in group]
        height, width = own[0] if len(set(own)) == 1 else canvas_size(own)
        total += pass_cost + len(group) * height * width
    return total


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 100)), max_size=20))
def test_groups_without_a_cost_of_passes_are_those_of_equal_size(sizes):
    assert group_by_size([], 0) == group_by_size([], 100) == []
    groups = group_by_size(sizes * 2, 0)
    assert sorted(i for g in groups for i in g) == list(range(2 * len(sizes)))
    assert len(groups) == len(set(sizes)) and all(len({(sizes * 2)[i] for i in g}) == 1 for g in groups)


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 100)), min_size=1, max_size=7), st.floats(1, 1e6))
def test_no_other_cut_through_the_sizes_costs_less(sizes, pass_cost):
    groups = group_by_size(sizes, pass_cost)
    assert sorted(i for g in groups for i in g) == list(range(len(sizes)))
    alike = {size: [i for i, s in enumerate(sizes) if s == size] for size in sizes}
    ordered = sorted(alike, key=lambda size: (size[0] * size[1], size))
    least = cost(groups, sizes, pass_cost)
    for cuts in itertools.product([False, True], repeat=len(ordered) - 1):
        other: list[list[int]] = [[]]
        for size, cut in zip(ordered, (False, *cuts), strict=True):
            if cut:
                other.append([])
            other[-1].extend(alike[size])
        assert least <= cost(other, sizes, pass_cost) + 1e-3


@pytest.mark.parametrize(("layer", "expected"), [(nn.GroupNorm(1, 3), True), (nn.BatchNorm2d(3), False)])
def test_layers_that_look_at_other_pixels(layer, expected):
    assert looks_at_other_pixels([nn.Sequential(nn.Conv2d(3, 3, 1), layer)]) is expected
