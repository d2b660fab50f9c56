"""The losses against loops written from the equations."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from person_search.modeling.losses import (
    cluster_contrastive_loss,
    cluster_means,
    in_scene_separation_loss,
    multi_label_loss,
    scale_invariant_loss,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1).float()


def squared(a: Tensor, b: Tensor) -> float:
    return float(((a.double() - b.double()) ** 2).sum())


def textbook_scale_loss(f: Tensor, o: Tensor | None, s: Tensor, images: Tensor, m: float, gamma: float) -> float:
    """Eq. 2-4, person by person."""
    per_image: dict[int, list[float]] = {}
    for i in range(len(f)):
        positives = [squared(f[i], x) for x in s[i]] or [squared(f[i], o[i])]
        negatives = []
        for j in range(len(f)):
            if j != i and images[j] == images[i]:
                negatives += [squared(f[i], x) for x in s[j]]
                negatives += [squared(f[i], o[j])] if o is not None else []
        hinge = max(0.0, m + max(positives) - min(negatives)) if negatives else 0.0
        per_image.setdefault(int(images[i]), []).append(hinge + (gamma * squared(f[i], o[i]) if o is not None else 0.0))
    return sum(sum(v) / len(v) for v in per_image.values()) / len(per_image)


@settings(deadline=None, max_examples=40)
@given(
    images=st.lists(st.integers(0, 3), min_size=1, max_size=7),
    scales=st.integers(0, 3),
    original=st.booleans(),
    margin=st.floats(0, 2),
    gamma=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_scale_loss_equals_the_equation(device, images, scales, original, margin, gamma, seed):
    if not original and not scales:
        return
    persons, ids = len(images), torch.tensor(images)
    f, s = unit(persons, 6, seed=seed), unit(persons, scales, 6, seed=seed + 1)
    o = unit(persons, 6, seed=seed + 2) if original else None
    expected = textbook_scale_loss(f, o, s, ids, margin, gamma)
    f, o, s, ids = (None if x is None else x.to(device) for x in (f, o, s, ids))
    assert float(scale_invariant_loss(f, o, s, ids, margin, gamma)) == pytest.approx(expected, abs=1e-5)


def test_scale_loss_of_a_person_alone_is_the_original_term():
    f, o, s = unit(1, 8), unit(1, 8, seed=1), unit(1, 3, 8, seed=2)
    loss = scale_invariant_loss(f, o, s, torch.tensor([5]), 0.3, 0.05)
    assert float(loss) == pytest.approx(0.05 * squared(f[0], o[0]), abs=1e-6)


def test_scale_loss_falls_when_followed_and_its_gradient_is_finite_at_equality():
    f = unit(4, 8).requires_grad_()
    o, s = unit(4, 8), unit(4, 1, 8).repeat(1, 3, 1)  # equal to f: the distances have no slope there
    loss = scale_invariant_loss(f, o, s, torch.tensor([0, 0, 1, 1]), 0.3, 0.05)
    (gradient,) = torch.autograd.grad(loss, f)
    assert gradient.isfinite().all()
    f = unit(4, 8, seed=9).requires_grad_()
    loss = scale_invariant_loss(f, o, s, torch.tensor([0, 0, 1, 1]), 0.3, 0.05)
    (gradient,) = torch.autograd.grad(loss, f)
    after = scale_invariant_loss(f - 0.01 * gradient, o, s, torch.tensor([0, 0, 1, 1]), 0.3, 0.05)
    assert after < loss


@pytest.mark.parametrize("rows", [0])
def test_losses_without_persons_are_zero_and_keep_the_graph(rows):
    f = torch.zeros(rows, 8, requires_grad=True)
    empty = torch.zeros(rows, dtype=torch.int64)
    losses = [
        scale_invariant_loss(f, f, torch.zeros(rows, 3, 8), empty, 0.3, 0.05),
        multi_label_loss(f, unit(5, 8), torch.zeros(rows, 5, dtype=torch.bool), 5.0),
        cluster_contrastive_loss(f, unit(5, 8), torch.arange(5), empty, 0.05, 0.6),
    ]
    for loss in losses:
        assert float(loss) == 0.0
        loss.backward(retain_graph=True)
    assert f.grad is not None


def test_scale_loss_without_any_exemplar_is_refused():
    with pytest.raises(ValueError, match="exemplars"):
        scale_invariant_loss(unit(2, 4), None, torch.zeros(2, 0, 4), torch.zeros(2), 0.3, 0.05)


def textbook_multi_label(f: Tensor, memory: Tensor, labels: Tensor, delta: float, ratio: float) -> float:
    """Eq. 11, row by row; with a ratio, the mean over the hardest of the negatives."""
    total = 0.0
    for i in range(len(f)):
        similarity = [float(f[i].double() @ row.double()) for row in memory]
        positives = [(x - 1) ** 2 for x, own in zip(similarity, labels[i], strict=True) if own]
        hardest = sorted((x for x, own in zip(similarity, labels[i], strict=True) if not own), reverse=True)
        hardest = hardest[: math.ceil(len(hardest) * ratio)]
        total += delta * sum(positives) / len(positives) if positives else 0.0
        total += sum((x + 1) ** 2 for x in hardest) / len(hardest) if hardest else 0.0
    return total


@settings(deadline=None, max_examples=40)
@given(q=st.integers(1, 5), n=st.integers(2, 20), ratio=st.sampled_from([1.0, 0.5, 0.1]), seed=st.integers(0, 1000))
def test_multi_label_loss_equals_the_equation(device, q, n, ratio, seed):
    f, memory = unit(q, 6, seed=seed), unit(n, 6, seed=seed + 1)
    labels = torch.rand(q, n, generator=torch.Generator().manual_seed(seed)) < 0.4
    labels[:, 0] = True
    expected = textbook_multi_label(f, memory, labels, 5.0, ratio)
    f, memory, labels = f.to(device), memory.to(device), labels.to(device)
    assert float(multi_label_loss(f, memory, labels, 5.0, ratio)) == pytest.approx(expected, rel=1e-4, abs=1e-4)


@settings(deadline=None, max_examples=40)
@given(q=st.integers(1, 5), n=st.integers(2, 20), ratio=st.sampled_from([1.0, 0.5, 0.1]), seed=st.integers(0, 1000))
def test_multi_label_gradient_equals_that_of_the_equation(device, q, n, ratio, seed):
    memory = unit(n, 6, seed=seed + 1)
    labels = torch.rand(q, n, generator=torch.Generator().manual_seed(seed)) < 0.4
    labels[:, 0] = True
    got, expected = (unit(q, 6, seed=seed).requires_grad_() for _ in range(2))
    (3 * multi_label_loss(got.to(device), memory.to(device), labels.to(device), 5.0, ratio)).backward()
    for i in range(q):
        similarity = expected[i] @ memory.T
        negatives = similarity[~labels[i]].sort(descending=True).values
        hardest = negatives[: math.ceil(len(negatives) * ratio)]
        loss = 5.0 * (similarity[labels[i]] - 1).square().mean()
        loss = loss + (hardest + 1).square().mean() if len(hardest) else loss
        (3 * loss).backward()
    torch.testing.assert_close(got.grad, expected.grad, rtol=1e-4, atol=1e-5)


class LargeFloats(TorchDispatchMode):
    """Counts the float arrays of `elements` and more that operations allocate."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements, self.count = elements, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        known = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, Tensor) and value.is_floating_point() and value.numel() >= self.elements:
                self.count += value.untyped_storage().data_ptr() not in known
        return result


@pytest.mark.parametrize("ratio", [1.0, 0.01])
def test_multi_label_loss_and_its_gradient_hold_the_similarity_and_no_other_array_of_its_size(ratio, device):
    q, n = 16, 2000
    f, memory = unit(q, 8).to(device).requires_grad_(), unit(n, 8, seed=1).to(device)
    labels = torch.eye(n, dtype=torch.bool, device=device)[:q]
    with LargeFloats(q * n) as large:
        multi_label_loss(f, memory, labels, 5.0, ratio).backward()
    assert large.count == 1 and f.grad.abs().sum() > 0
    with LargeFloats(q * n) as large:  # The count notices what autograd makes of the formula.
        ((f @ memory.T) + 1).square().mean().backward()
    assert large.count > 2


def textbook_cluster(
    f: Tensor, memory: Tensor, labels: Tensor, targets: Tensor, temperature: float, mass: float, epsilon: float
) -> float:
    """Softmax over clusters, negatives sorted by their share of the negatives' mass."""
    total = 0.0
    for i in range(len(f)):
        logits = {}
        for c in sorted(set(labels.tolist())):
            rows = [memory[j] for j in range(len(memory)) if labels[j] == c]
            logits[c] = sum(float(f[i].double() @ r.double()) for r in rows) / len(rows) / temperature
        positive = int(labels[targets[i]])
        negatives = sorted((math.exp(v) for c, v in logits.items() if c != positive), reverse=True)
        cumulative, gaps = 0.0, []
        for value in negatives:
            cumulative += value / sum(negatives)
            gaps.append(abs(cumulative - mass))
        kept = negatives[: gaps.index(min(gaps)) + 1] if gaps else []
        own = math.exp(logits[positive])
        total -= math.log(own / (own + sum(kept) + epsilon) + epsilon)
    return total / len(f)


@settings(deadline=None, max_examples=40)
@given(
    q=st.integers(1, 5),
    n=st.integers(1, 20),
    clusters=st.integers(1, 6),
    mass=st.sampled_from([0.6, 0.3, 1.0]),
    epsilon=st.sampled_from([0.0, 1e-6, 0.1]),
    seed=st.integers(0, 1000),
)
def test_cluster_loss_equals_the_definition(device, q, n, clusters, mass, epsilon, seed):
    generator = torch.Generator().manual_seed(seed)
    f, memory = unit(q, 6, seed=seed), unit(n, 6, seed=seed + 1)
    _, labels = torch.unique(torch.randint(0, clusters, (n,), generator=generator), return_inverse=True)
    targets = torch.randint(0, n, (q,), generator=generator)
    expected = textbook_cluster(f, memory, labels, targets, 0.2, mass, epsilon)
    got = cluster_contrastive_loss(*(x.to(device) for x in (f, memory, labels, targets)), 0.2, mass, epsilon)
    assert float(got) == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_the_gradient_saturates_through_epsilon_where_the_cluster_is_far():
    memory = torch.eye(2)
    gradient = {}
    for epsilon in (0.0, 1e-6):
        far = torch.tensor([[0.0, 1.0]], requires_grad=True)  # its cluster has a probability of exp(-20)
        arguments = (memory, torch.tensor([0, 1]), torch.tensor([0]), 0.05, 0.6, epsilon)
        cluster_contrastive_loss(far, *arguments).backward()
        gradient[epsilon] = float(far.grad.norm())
    probability = math.exp(-20)
    assert gradient[0.0] == pytest.approx(20 * 2**0.5, rel=1e-4)
    assert gradient[1e-6] == pytest.approx(gradient[0.0] * probability / (probability + 1e-6), rel=1e-3)


def test_cluster_means():
    memory = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    assert cluster_means(memory, torch.tensor([0, 1, 0])).tolist() == [[2.0, 0.0], [0.0, 1.0]]


def test_no_gradient_flows_into_the_memory():
    memory = unit(6, 8).requires_grad_()
    f = unit(3, 8, seed=3).requires_grad_()
    labels = torch.eye(6, dtype=torch.bool)[:3]
    loss = multi_label_loss(f, memory, labels, 5.0)
    loss = loss + cluster_contrastive_loss(f, memory, torch.arange(6), torch.arange(3), 0.05, 0.6)
    loss.backward()
    assert memory.grad is None and f.grad.abs().sum() > 0


def textbook_separation(f: Tensor, persons: Tensor, images: Tensor, margin: float) -> float:
    """RoI by RoI."""
    per_image: dict[int, list[float]] = {}
    for i in range(len(f)):
        others = [j for j in range(len(f)) if images[j] == images[i] and persons[j] != persons[i]]
        if others:
            excess = [max(float(f[i].double() @ f[j].double()) - margin, 0.0) for j in others]
            total = sum(math.exp(e) for e in excess)
            per_image.setdefault(int(images[i]), []).append(sum(math.exp(e) / total * e for e in excess))
    means = [sum(values) / len(values) for values in per_image.values()]
    return sum(means) / len(means) if means else 0.0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 9), st.sampled_from([-1.0, 0.0, 0.7]))
def test_separation_in_a_scene_equals_the_textbook(seed: int, count: int, margin: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    persons = torch.randint(0, 5, (count,), generator=generator)
    images = persons % 2  # a person is in one image alone
    features = unit(count, 4, seed=seed).requires_grad_()
    loss = in_scene_separation_loss(features, persons, images, margin)
    assert float(loss) == pytest.approx(textbook_separation(features.detach(), persons, images, margin), abs=1e-5)
    loss.backward()
    assert features.grad.isfinite().all()


def test_separation_pushes_apart_what_looks_alike() -> None:
    features = unit(1, 4).repeat(2, 1) + torch.tensor([[0.1, 0, 0, 0], [0, 0.1, 0, 0]])
    features = F.normalize(features, dim=1).requires_grad_()
    persons, images = torch.tensor([0, 1]), torch.tensor([0, 0])
    in_scene_separation_loss(features, persons, images, 0.7).backward()
    moved = F.normalize(features.detach() - 0.1 * features.grad, dim=1)
    assert float(moved[0] @ moved[1]) < float(features[0] @ features[1])
    # The same person twice, or two images: nothing to part.
    for same in ((torch.tensor([0, 0]), images), (persons, torch.tensor([0, 1]))):
        assert float(in_scene_separation_loss(features, *same, 0.7)) == 0.0
