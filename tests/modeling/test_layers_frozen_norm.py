"""The fused batch normalization against Detectron2's."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from person_search.modeling.layers import FusedFrozenBatchNorm2d, fuse_frozen_norms
from torch import nn


@pytest.fixture
def norm() -> FrozenBatchNorm2d:
    made = FrozenBatchNorm2d(5, eps=1e-3)
    for buffer in made.buffers():
        nn.init.uniform_(buffer, 0.2, 2)
    return made


def assert_same(fused: nn.Module, norm: nn.Module, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
    x = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    for wanted in (False, True):
        left, right = (x.clone().requires_grad_(wanted) for _ in range(2))
        got, expected = fused(left), norm(right)
        tolerance = 1e-5 if dtype == torch.float32 else 3e-2  # 8 bits, rounded twice
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)
        if wanted:
            got.square().sum().backward()
            expected.square().sum().backward()
            torch.testing.assert_close(left.grad, right.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_function_and_gradient_in_any_precision(norm, device, dtype):
    fused = FusedFrozenBatchNorm2d.like(norm).to(device)
    norm.to(device)
    assert_same(fused, norm, device, dtype)
    assert_same(fused, norm, device)  # what was kept for the other type is not used


def test_follows_its_buffers(norm):
    fused = FusedFrozenBatchNorm2d.like(norm)
    assert_same(fused, norm)
    norm.running_var.mul_(3)  # the buffers are the same tensors
    assert fused.running_var is norm.running_var
    assert_same(fused, norm)
    state = {name: value + 0.5 for name, value in norm.state_dict().items()}
    norm.load_state_dict(state)
    assert_same(fused, norm)
    norm.bias = fused.bias = torch.arange(5.0)
    assert_same(fused, norm)
    twin = copy.deepcopy(fused)
    twin.weight.add_(1)
    assert_same(fused, norm)
    norm.weight.add_(1)
    assert_same(twin, norm)


def test_replaces_every_frozen_norm_and_keeps_the_state_dict(norm):
    model = nn.Sequential(nn.Conv2d(3, 5, 1), norm, nn.Sequential(copy.deepcopy(norm)), nn.BatchNorm2d(5))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fuse_frozen_norms(model)
    assert [type(layer) for layer in model] == [nn.Conv2d, FusedFrozenBatchNorm2d, nn.Sequential, nn.BatchNorm2d]
    assert type(model[2][0]) is FusedFrozenBatchNorm2d
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
