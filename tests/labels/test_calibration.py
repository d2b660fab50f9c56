"""Thresholds and radii as quantiles of what persons of one image, who are different people, have in common."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from person_search.labels import (
    SelfPacedDBSCAN,
    calibrated_threshold,
    jaccard_distance,
    predict_multi_labels,
    same_image_similarities,
)


@given(count=st.integers(0, 40), images=st.integers(1, 15), seed=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_similarities_are_those_of_every_pair_of_an_image_once(count: int, images: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    features = F.normalize(torch.randn(count, 5, generator=random), dim=1)
    features[torch.rand(count, generator=random) < 0.1] = 0
    image_index = torch.randint(images, (count,), generator=random)
    expected = [
        float(features[i] @ features[j])
        for i, j in itertools.combinations(range(count), 2)
        if image_index[i] == image_index[j] and features[i].any() and features[j].any()
    ]
    found = same_image_similarities(features, image_index)
    assert sorted(found.tolist()) == pytest.approx(sorted(expected), abs=1e-5)


def test_of_many_pairs_a_spread_sample_is_taken() -> None:
    random = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(3000, 8, generator=random), dim=1)
    image_index = torch.arange(3000) // 10
    every = same_image_similarities(features, image_index)
    some = same_image_similarities(features, image_index, most=1000)
    assert len(every) == 300 * 45 and len(some) == 1000
    assert abs(every.quantile(0.9) - some.quantile(0.9)) < 0.03
    assert torch.isin(some, every).all()


def test_the_threshold_leaves_the_share_of_known_negatives_above_it_whatever_the_network() -> None:
    random = torch.Generator().manual_seed(0)
    spread = F.normalize(torch.randn(400, 16, generator=random), dim=1)
    # The same persons as another network might see them: all within a narrow cone.
    cone = F.normalize(spread + 4 * F.normalize(torch.ones(16), dim=0), dim=1)
    image_index = torch.arange(400) // 5
    for features in (spread, cone):
        threshold = calibrated_threshold(features, image_index, 0.98)
        above = (same_image_similarities(features, image_index) > threshold).float().mean()
        assert 0.015 <= above <= 0.02
        labels = predict_multi_labels(features @ features.T, image_index, torch.arange(400), threshold)
        assert 400 < labels.sum() < 400 * 20
    fixed = [int(predict_multi_labels(f @ f.T, image_index, torch.arange(400), 0.7).sum()) for f in (spread, cone)]
    assert fixed[0] < 600 and fixed[1] > 400 * 60  # what a fixed similarity makes of the two


def test_without_two_persons_in_an_image_there_is_no_threshold() -> None:
    assert calibrated_threshold(torch.eye(3), torch.arange(3), 0.9) is None


def test_radii_are_quantiles_of_the_distances_within_images():
    random = np.random.default_rng(0)
    person = np.tile(np.arange(8), 15)
    features = (random.standard_normal((8, 16))[person] + 0.9 * random.standard_normal((120, 16))).astype(np.float32)
    images = np.repeat(np.arange(15), 8)
    distance = jaccard_distance(F.normalize(torch.from_numpy(features), dim=1), 12, 3).toarray()
    pairs = np.triu(images[:, None] == images, 1)
    # What is not stored is 1 apart; identical codes are not met here.
    within = np.sort(np.where(distance[pairs] == 0, 1, distance[pairs]))
    normal = float(within[int(0.02 * len(within))])
    assert 0.3 < normal < 0.9
    calibrated = SelfPacedDBSCAN((0.94, 0.95, 0.97), 3, k1=12, k2=3, eps_quantile=0.02)
    given = SelfPacedDBSCAN((normal - 0.01, normal + 1e-5, normal + 0.02), 3, k1=12, k2=3)
    expected = given.fit(features, images)
    assert np.array_equal(calibrated.fit(features, images), expected)
    assert not np.array_equal(expected, SelfPacedDBSCAN((0.94, 0.95, 0.97), 3, k1=12, k2=3).fit(features, images))
    # Never above the radii that are given.
    low = (normal - 0.2, normal - 0.15, normal - 0.1)
    capped = SelfPacedDBSCAN(low, 3, k1=12, k2=3, eps_quantile=0.02)
    assert np.array_equal(capped.fit(features, images), SelfPacedDBSCAN(low, 3, k1=12, k2=3).fit(features, images))


def test_radii_need_images_of_two_persons():
    model = SelfPacedDBSCAN((0.5,), 3, k1=4, k2=2, eps_quantile=0.01)
    with pytest.raises(ValueError, match="eps_quantile needs images with two persons"):
        model.fit(np.eye(10, dtype=np.float32), np.arange(10))
    with pytest.raises(ValueError, match="eps_quantile is 1.5"):
        SelfPacedDBSCAN((0.5,), eps_quantile=1.5)
