"""Batch normalization over processes against BatchNorm1d over their joint batch."""

from __future__ import annotations

from pathlib import Path

import torch
from detectron2.utils import comm
from person_search.modeling.layers import SyncedBatchNorm1d
from torch import Tensor, nn

from ..processes import launch_two


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
    launch_two(one_process, path)
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


def uncounted(features: Tensor, rest: Tensor) -> dict[str, Tensor]:
    """Rows that are counted and rows that are not, by hand, with autograd's gradient through the statistics."""
    features, rest = (t.clone().requires_grad_() for t in (features, rest))
    mean, variance = features.mean(dim=0), features.var(dim=0, correction=0)
    joint = (torch.cat([features, rest]) - mean) / (variance + 1e-5).sqrt()
    (joint * torch.arange(float(joint.numel())).view_as(joint).sin()).sum().backward()
    return {
        "output": joint.detach(), "gradient": features.grad, "rest": rest.grad,
        "mean": 0.1 * mean.detach(), "variance": 0.9 + 0.1 * features.detach().var(dim=0),
    }  # fmt: skip


def of_layer(features: Tensor, rest: Tensor, weights: Tensor) -> dict[str, Tensor]:
    layer = SyncedBatchNorm1d(5)
    features, rest = (t.clone().requires_grad_() for t in (features, rest))
    joint = layer(torch.cat([features, rest]), counted=len(features))
    (joint * weights).sum().backward()
    return {
        "output": joint.detach(), "gradient": features.grad, "rest": rest.grad,
        "mean": layer.running_mean, "variance": layer.running_var,
    }  # fmt: skip


def weights_of(rows: int) -> Tensor:
    return torch.arange(float(rows * 5)).view(rows, 5).sin()


def test_rows_that_are_not_counted_leave_no_trace():
    features, rest = joint_batch()
    expected = uncounted(features, rest)
    got = of_layer(features, rest, weights_of(18))
    for key, value in expected.items():
        torch.testing.assert_close(got[key], value, rtol=1e-4, atol=1e-5)
    alone = of_layer(features, rest[:0], weights_of(9))
    assert torch.equal(got["output"][:9], alone["output"])
    assert torch.equal(got["mean"], alone["mean"]) and torch.equal(got["variance"], alone["variance"])


def one_process_uncounted(path: str) -> None:
    features, rest = joint_batch()
    weights = weights_of(18)
    part = slice(0, 6) if comm.get_rank() == 0 else slice(6, 9)
    weights = torch.cat([weights[:9][part], weights[9:][part]])
    torch.save(of_layer(features[part], rest[part], weights), f"{path}.{comm.get_rank()}")


def test_rows_that_are_not_counted_in_two_processes(tmp_path: Path):
    path = str(tmp_path / "result")
    launch_two(one_process_uncounted, path)
    parts, expected = [torch.load(f"{path}.{rank}") for rank in (0, 1)], uncounted(*joint_batch())
    outputs = [parts[0]["output"][:6], parts[1]["output"][:3], parts[0]["output"][6:], parts[1]["output"][3:]]
    torch.testing.assert_close(torch.cat(outputs), expected["output"], rtol=1e-4, atol=1e-5)
    for key in ("gradient", "rest"):
        torch.testing.assert_close(torch.cat([p[key] for p in parts]), expected[key], rtol=1e-4, atol=1e-5)
    for key in ("mean", "variance"):
        torch.testing.assert_close(parts[0][key], expected[key], rtol=1e-5, atol=1e-6)


def test_a_row_alone_is_normalized_with_the_running_statistics():
    layer = SyncedBatchNorm1d(5)
    layer.running_mean += 2
    features = joint_batch()[0][:3]
    expected = (features - 2) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(layer(features, counted=1), expected)
    assert layer(features[:0]).shape == (0, 5)
    assert (layer.running_mean == 2).all() and int(layer.num_batches_tracked) == 0
