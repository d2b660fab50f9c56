"""The detection context of CGPS against its definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from person_search.modeling.objectives.cgps import detection_context_loss
from torch import Tensor


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def textbook(persons: Tensor, labels: list[int], backgrounds: Tensor, margin: float, weight: float) -> float:
    def distance(a: Tensor, b: Tensor) -> float:
        return float((a.double() - b.double()).norm())

    identity, background = [], []
    for i, person in enumerate(persons):
        to = [distance(person, other) for other in persons]
        own = [d for d, label in zip(to, labels, strict=True) if label == labels[i]]
        others = [d for d, label in zip(to, labels, strict=True) if label != labels[i]]
        if others:
            identity.append(max(0.0, margin + max(own) - min(others)))
        if len(backgrounds):
            background.append(max(0.0, margin + max(to) - min(distance(person, b) for b in backgrounds)))
    return sum(identity) / max(len(identity), 1) + weight * sum(background) / max(len(background), 1)


@settings(deadline=None, max_examples=40)
@given(r=st.integers(0, 7), g=st.integers(0, 4), labels=st.integers(1, 4), seed=st.integers(0, 1000))
def test_loss_equals_the_definition(r, g, labels, seed):
    persons, backgrounds = unit(r, 5, seed=seed), unit(g, 5, seed=seed + 1)
    chosen = torch.randint(0, labels, (r,), generator=torch.Generator().manual_seed(seed))
    expected = textbook(persons, chosen.tolist(), backgrounds, 0.3, 0.25)
    assert float(detection_context_loss(persons, chosen, backgrounds, 0.3, 0.25)) == pytest.approx(expected, abs=1e-5)


def test_a_step_along_the_gradient_lowers_the_loss_and_equal_features_have_a_finite_one():
    persons, backgrounds = unit(6, 5).requires_grad_(), unit(3, 5, seed=1).requires_grad_()
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    loss = detection_context_loss(persons, labels, backgrounds, 0.3, 0.25)
    moved = [
        f - 0.01 * g
        for f, g in zip((persons, backgrounds), torch.autograd.grad(loss, (persons, backgrounds)), strict=True)
    ]
    assert detection_context_loss(moved[0], labels, moved[1], 0.3, 0.25) < loss
    equal = unit(1, 5).repeat(4, 1).requires_grad_()
    loss = detection_context_loss(equal, torch.tensor([0, 0, 1, 1]), equal[:1].detach(), 0.3, 0.25)
    assert torch.autograd.grad(loss, equal)[0].isfinite().all()
