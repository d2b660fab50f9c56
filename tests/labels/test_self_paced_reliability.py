"""Same-image rule and reliability criterion against loops and dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from person_search.labels import self_paced as reliability

counts = st.integers(1, 40)
seeds = st.integers(0, 10_000)


def partition(labels: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(labels == label).tolist()) for label in set(labels.tolist())}


def drawn_labels(random: np.random.Generator, count: int) -> np.ndarray:
    """Some clusters, and among them singletons."""
    labels = random.integers(0, max(1, count // 4), count)
    alone = random.random(count) < 0.2
    labels[alone] = 1000 + np.flatnonzero(alone)
    return labels


def same_image_by_loops(labels: np.ndarray, features: np.ndarray, images: np.ndarray) -> np.ndarray:
    result = labels.copy()
    for label in set(labels.tolist()):
        members = np.flatnonzero(labels == label)
        centre = features[members].mean(0)
        for image in set(images[members].tolist()):
            rivals = members[images[members] == image]
            best = rivals[np.argmax(features[rivals] @ centre)]
            for row in rivals:
                if row != best:
                    result[row] = result.max() + 1
    return result


def criterion_by_matrices(
    labels: np.ndarray, tight: np.ndarray, loose: np.ndarray, threshold: float | None, quantile: float
) -> tuple[np.ndarray, float | None]:
    """The equations on (N, N) matrices of who is with whom."""
    same, same_tight, same_loose = (x[:, None] == x[None] for x in (labels, tight, loose))

    def disagreement(other: np.ndarray) -> np.ndarray:
        return np.array([1 - (a & b).sum() / (a | b).sum() for a, b in zip(same, other, strict=True)])

    compactness, independence = disagreement(same_tight), disagreement(same_loose)
    clusters = sorted(set(labels.tolist()))
    smallest = {c: (compactness[labels == c].min(), independence[labels == c].min()) for c in clusters}
    if threshold is None:
        values = sorted(smallest[c][1] for c in clusters if (labels == c).sum() > 1)
        if not values:
            return labels, None
        threshold = values[min(len(values) - 1, int(np.round(len(values) * quantile)))]
    result = labels.copy()
    for i, label in enumerate(labels):
        least_compactness, least_independence = smallest[label]
        if least_independence > threshold + 1e-6 or compactness[i] > least_compactness + 1e-6:
            result[i] = result.max() + 1
    return result, threshold


@given(count=counts, images=st.integers(1, 12), seed=seeds)
@settings(max_examples=100, deadline=None)
def test_same_image_rule_equals_loops(count: int, images: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    # Few distinct features, with exact inner products: ties occur, and the lowest row has to win.
    features = (random.integers(-2, 3, (count, 3)) / 2).astype(np.float32)
    labels, image = drawn_labels(random, count), random.integers(0, images, count)
    # A power of two of members keeps the mean exact too.
    if any((size & (size - 1)) != 0 for size in np.unique(labels, return_counts=True)[1]):
        features += random.standard_normal(features.shape).astype(np.float32)
    result = reliability.keep_nearest_per_image(labels, torch.from_numpy(features), image)
    assert partition(result) == partition(same_image_by_loops(labels, features, image))
    for cluster in partition(result):
        assert len(set(image[list(cluster)].tolist())) == len(cluster)


@given(count=counts, seed=seeds, quantile=st.sampled_from([0.0, 0.5, 0.9, 1.0]), learn=st.booleans())
@settings(max_examples=150, deadline=None)
def test_criterion_equals_its_equations(count: int, seed: int, quantile: float, learn: bool) -> None:
    random = np.random.default_rng(seed)
    labels = drawn_labels(random, count)
    # Tighter and looser clusterings that agree with it in part.
    tight, loose = labels.copy(), labels.copy()
    leaving, joining = random.random(count) < 0.2, random.random(count) < 0.2
    tight[leaving] = 5000 + np.flatnonzero(leaving)
    loose[joining] = labels[0]
    given_threshold = None if learn else float(random.choice([0.0, 0.3, 0.5, 1.0]))
    expected, expected_threshold = criterion_by_matrices(labels, tight, loose, given_threshold, quantile)
    result, threshold = reliability.keep_reliable(labels, tight, loose, given_threshold, quantile)
    assert threshold == (None if expected_threshold is None else pytest.approx(expected_threshold, abs=1e-6))
    assert partition(result) == partition(expected)


def test_disagreement_is_one_minus_intersection_over_union() -> None:
    labels, others = np.array([0, 0, 0, 1, 1]), np.array([4, 4, 9, 9, 9])
    expected = [1 - 2 / 3, 1 - 2 / 3, 1 - 1 / 5, 1 - 2 / 3, 1 - 2 / 3]
    assert reliability.disagreement(labels, others) == pytest.approx(expected, abs=1e-6)


def test_outliers_become_classes_of_their_own() -> None:
    labels = reliability.outliers_to_singletons(np.array([-1, 0, 1, -1, 0]))
    assert labels.tolist() == [2, 0, 1, 3, 0]


def test_numbers_clusters_before_singletons() -> None:
    assert reliability.number_labels(np.array([8, 5, 5, 2, 9, 2])).tolist() == [2, 0, 0, 1, 3, 1]
    assert reliability.number_labels(np.zeros(0, dtype=np.int64)).shape == (0,)
