"""Multi-labels against the walk of the paper, candidate by candidate."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from person_search.labels import DynamicThreshold, predict_multi_labels

from ..tensors import LargestTensor


def walk(similarity: torch.Tensor, image_index: torch.Tensor, rows: torch.Tensor, threshold: float) -> torch.Tensor:
    """Each row first keeps itself, then walks the candidates by falling similarity; keeping one closes its image."""
    labels = torch.zeros(similarity.shape, dtype=torch.bool)
    for q, row in enumerate(rows.tolist()):
        labels[q, row] = True
        closed = {image_index[row].item()}
        candidates = [j for j in range(similarity.shape[1]) if similarity[q, j] >= threshold]
        for j in sorted(candidates, key=lambda j: (-similarity[q, j].item(), j)):
            if image_index[j].item() not in closed:
                labels[q, j] = True
                closed.add(image_index[j].item())
    return labels


@given(
    count=st.integers(1, 40),
    images=st.integers(1, 12),
    queries=st.integers(0, 6),
    threshold=st.sampled_from([-2.0, -0.5, 0.0, 0.25, 0.75, 2.0]),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=150, deadline=None)
def test_equals_the_walk_also_with_ties(
    device: str, count: int, images: int, queries: int, threshold: float, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    # Multiples of 1/4: many candidates are equally similar, and some equal the threshold.
    similarity = torch.randint(-4, 5, (queries, count), generator=random) / 4
    image_index = torch.randint(0, images, (count,), generator=random) * 1000 - 3000
    rows = torch.randint(0, count, (queries,), generator=random)
    labels = predict_multi_labels(similarity.to(device), image_index, rows, threshold)
    assert labels.dtype == torch.bool and labels.device.type == device
    assert torch.equal(labels.cpu(), walk(similarity, image_index, rows, threshold))


def test_the_row_itself_stays_below_the_threshold_and_closes_its_image() -> None:
    similarity = torch.tensor([[0.1, 0.9, 0.9]])
    labels = predict_multi_labels(similarity, torch.tensor([7, 7, 8]), torch.tensor([0]), 0.5)
    assert labels.tolist() == [[True, False, True]]


def test_the_lowest_of_equally_similar_rows_stays() -> None:
    similarity = torch.tensor([[1.0, 0.8, 0.9, 0.9]])
    labels = predict_multi_labels(similarity, torch.tensor([0, 5, 5, 5]), torch.tensor([0]), 0.5)
    assert labels.tolist() == [[True, False, True, False]]


def test_carries_no_gradient_and_leaves_the_similarity_alone() -> None:
    similarity = torch.rand(3, 9, requires_grad=True)
    before = similarity.detach().clone()
    labels = predict_multi_labels(similarity, torch.arange(9), torch.tensor([0, 4, 8]), 0.5)
    assert not labels.requires_grad and torch.equal(similarity, before)


def test_makes_no_float_copy_of_the_similarity(device: str) -> None:
    similarity = torch.rand(16, 500, device=device)
    with LargestTensor(floating_point=True) as largest:
        predict_multi_labels(similarity, torch.arange(500) // 3, torch.arange(16), 0.95)
    assert 0 < largest.elements < similarity.numel() // 8


@pytest.mark.parametrize(
    ("similarity", "image_index", "instance_index", "message"),
    [
        (torch.zeros(5), torch.arange(5), torch.zeros(1, dtype=torch.int64), r"similarity .* \(q, N\)"),
        (torch.zeros(2, 5), torch.arange(4), torch.tensor([0, 1]), r"image_index .* \(5,\)"),
        (torch.zeros(2, 5), torch.arange(5), torch.tensor([0]), r"instance_index .* \(2,\)"),
        (torch.zeros(2, 5), torch.arange(5), torch.tensor([0, 5]), r"expected 0\.\.4"),
        (torch.zeros(2, 5), torch.arange(5), torch.tensor([-1, 0]), r"expected 0\.\.4"),
    ],
)
def test_rejects_arrays_that_do_not_fit(
    similarity: torch.Tensor, image_index: torch.Tensor, instance_index: torch.Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        predict_multi_labels(similarity, image_index, instance_index, 0.5)


def test_dynamic_threshold_is_equation_9() -> None:
    threshold = DynamicThreshold(initial=0.6, alpha=0.1, beta=-0.1)
    assert threshold.at(0) == pytest.approx(0.7)
    assert threshold.at(10) == pytest.approx(0.6 + 0.1 * math.exp(-1))
    assert DynamicThreshold(initial=0.6, alpha=0.0, beta=-0.1).at(25) == 0.6
    falling = [threshold.at(epoch) for epoch in range(26)]
    assert falling == sorted(falling, reverse=True) and falling[-1] > 0.6
