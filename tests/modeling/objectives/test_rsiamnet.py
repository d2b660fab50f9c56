"""The consistency losses of R-SiamNet against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from person_search.modeling.objectives.rsiamnet import region_consistency_loss, similarity_consistency_loss
from torch import Tensor


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def distribution(features: Tensor, i: int, temperature: float) -> list[float]:
    similarity = (features.double() @ features[i].double()).tolist()
    scores = [math.exp(s / temperature) for j, s in enumerate(similarity) if j != i]
    return [s / sum(scores) for s in scores]


def textbook_similarity(regions: Tensor, crops: Tensor, temperature: float) -> float:
    total, terms = 0.0, 0
    for s in range(crops.shape[1]):
        for i in range(len(regions)):
            p, q = distribution(regions, i, temperature), distribution(crops[:, s], i, temperature)
            forward = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
            backward = sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
            total, terms = total + (forward + backward) / 2, terms + 1
    return total / terms


@settings(deadline=None, max_examples=30)
@given(p=st.integers(1, 6), s=st.integers(1, 3), seed=st.integers(0, 1000), temperature=st.sampled_from([0.05, 0.5]))
def test_losses_equal_their_definitions(p, s, seed, temperature):
    regions, crops = unit(p, 6, seed=seed), unit(p, s, 6, seed=seed + 1)
    cosines = [float(regions[i].double() @ crops[i, k].double()) for i in range(p) for k in range(s)]
    assert float(region_consistency_loss(regions, crops)) == pytest.approx(1 - sum(cosines) / len(cosines), abs=1e-5)
    expected = textbook_similarity(regions, crops, temperature) if p > 1 else 0.0
    got = float(similarity_consistency_loss(regions, crops, temperature))
    assert got == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_consistent_features_have_no_loss_and_both_paths_learn():
    regions = unit(5, 6)
    assert float(region_consistency_loss(regions, regions[:, None])) == pytest.approx(0.0, abs=1e-6)
    assert float(similarity_consistency_loss(regions, regions[:, None], 0.05)) == pytest.approx(0.0, abs=1e-6)
    for loss in (region_consistency_loss, lambda r, c: similarity_consistency_loss(r, c, 0.05)):
        r, c = unit(5, 6).requires_grad_(), unit(5, 2, 6, seed=1).requires_grad_()
        assert all(float(g.abs().sum()) > 0 for g in torch.autograd.grad(loss(r, c), (r, c)))


@pytest.mark.parametrize("persons", [0, 1])
def test_few_persons_keep_the_graph(persons):
    r, c = unit(persons, 6).requires_grad_(), unit(persons, 1, 6).requires_grad_()
    loss = similarity_consistency_loss(r, c, 0.05) + (region_consistency_loss(r, c) if persons == 0 else 0)
    assert float(loss.detach()) == 0.0
    loss.backward()
    assert r.grad is not None and c.grad is not None
