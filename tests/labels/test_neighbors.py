"""Neighbor search against sorting all distances."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from person_search.labels import neighbors
from person_search.labels.neighbors import nearest_neighbors


def unit_rows(count: int, dimension: int, seed: int = 0) -> torch.Tensor:
    features = torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(features, dim=1)


def assert_nearest(found: torch.Tensor, features: torch.Tensor, k: int) -> None:
    """The found rows are k different ones, the row itself first, at the k smallest distances (rounding may swap
    two)."""
    assert found.device == features.device
    found, features = found.cpu(), features.cpu()
    count = len(features)
    k = min(k, count)
    assert found.shape == (count, k) and found.dtype == torch.int64
    assert torch.equal(found[:, 0], torch.arange(count))
    assert (found.sort(dim=1).values.diff(dim=1) > 0).all()
    distance = torch.cdist(features.double(), features.double(), compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.allclose(distance.gather(1, found), distance.sort(dim=1).values[:, :k], atol=1e-4)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 7, 40, 200, 517])
def test_exact_search_equals_sorting(count: int, threads: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Small tiles: several panels, tiles of other widths at the end, and both ways to select from a tile.
    monkeypatch.setattr(neighbors, "_TILE_CPU", (32, 64))
    monkeypatch.setattr(neighbors, "_TILE_GPU", (32, 64))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for features in (unit_rows(count, 24), 3 * unit_rows(count, 24) * torch.rand(count, 1)):
            features = features.to(device)
            for k in (1, 5, 30):
                assert_nearest(nearest_neighbors(features, k), features, k)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_exact_search_with_the_real_tile_sizes(device: str) -> None:
    features = unit_rows(2500, 16).to(device)
    assert_nearest(nearest_neighbors(features, 10), features, 10)


def test_bounds_stay_right_where_near_rows_come_last(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows ever nearer to the first: nearly every later tile holds better columns than all before it."""
    monkeypatch.setattr(neighbors, "_TILE_CPU", (16, 32))
    monkeypatch.setattr(neighbors, "_TILE_GPU", (16, 32))
    angle = torch.linspace(1.5, 0.01, 400, dtype=torch.float64)
    angle[0] = 0
    features = torch.stack([angle.cos(), angle.sin()], dim=1).float().to(device)
    assert_nearest(nearest_neighbors(features, 4), features, 4)


def test_tf32_of_training_does_not_reach_the_neighbors(gpu: str, matmul: Any) -> None:
    matmul.allow_tf32 = True
    features = unit_rows(1500, 64)
    assert torch.equal(nearest_neighbors(features.to(gpu), 10).cpu(), nearest_neighbors(features, 10))
    assert matmul.allow_tf32


def test_identical_rows_come_after_the_row_itself() -> None:
    features = unit_rows(1, 8).expand(700, 8).contiguous()
    found = nearest_neighbors(features, 5)
    assert torch.equal(found[:, 0], torch.arange(700))
    assert all(len(set(row)) == 5 for row in found.tolist())


def test_no_rows() -> None:
    assert nearest_neighbors(torch.zeros(0, 8), 5).shape == (0, 0)


def test_rejects_no_neighbors() -> None:
    with pytest.raises(ValueError, match="k is 0"):
        nearest_neighbors(unit_rows(5, 8), 0)
