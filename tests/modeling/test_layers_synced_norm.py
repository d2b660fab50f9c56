"""Batch normalisation over processes against BatchNorm1d over their joint batch."""

from __future__ import annotations

from pathlib import Path

import torch
from detectron2.engine import launch
from detectron2.utils import comm
from person_search.modeling.layers import SyncedBatchNorm1d
from torch import Tensor, nn


def joint_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(9, 5, generator=generator) * 3 + 1, torch.randn(9, 5, generator=generator)


def step(layer: nn.BatchNorm1d, features: Tensor, weights: Tensor) -> dict[str, Tensor]:
    features = features.clone().requires_grad_()
    output = layer(features)
    (output * weights).sum().backward()
    return {
        "output": output.detach(),
        "gradient": features.grad,
        "mean": layer.running_mean,
        "variance": layer.running_var,
    }


def one_process(path: str) -> None:
    features, weights = joint_batch()
    part = slice(0, 6) if comm.get_rank() == 0 else slice(6, 9)  # parts of different sizes
    torch.save(step(SyncedBatchNorm1d(5), features[part], weights[part]), f"{path}.{comm.get_rank()}")


def test_two_processes_equal_the_joint_batch(tmp_path: Path):
    path = str(tmp_path / "result")
    launch(one_process, 2, dist_url="auto", args=(path,))
    parts = [torch.load(f"{path}.{rank}") for rank in (0, 1)]
    expected = step(nn.BatchNorm1d(5), *joint_batch())
    for key in ("output", "gradient"):
        torch.testing.assert_close(torch.cat([p[key] for p in parts]), expected[key], rtol=1e-4, atol=1e-5)
    for key in ("mean", "variance"):
        for part in parts:
            torch.testing.assert_close(part[key], expected[key], rtol=1e-5, atol=1e-6)


def test_one_process_is_batch_norm():
    features, weights = joint_batch()
    got, expected = step(SyncedBatchNorm1d(5), features, weights), step(nn.BatchNorm1d(5), features, weights)
    for key, value in expected.items():
        assert torch.equal(got[key], value)
