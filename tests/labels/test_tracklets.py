"""Tracklets as evidence for cluster labels: whole tracklets, one person an image, whatever the clustering said."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from person_search.labels import SelfPacedDBSCAN, pair_precision_recall
from person_search.labels.tracklets import keep_tracklets_whole


def whole(labels: list[int], tracklets: list[int], images: list[int]) -> list[int]:
    return keep_tracklets_whole(np.array(labels), np.array(tracklets), np.array(images)).tolist()


def groups(labels: list[int]) -> set[frozenset[int]]:
    return {frozenset(np.flatnonzero(np.array(labels) == label).tolist()) for label in labels}


def test_a_tracklet_goes_where_most_of_its_boxes_are():
    # Rows 0..4 are a tracklet: three boxes in cluster 0, one in cluster 1, one alone; rows 5..7 are loose.
    found = whole([0, 0, 0, 1, 9, 0, 1, 1], [3, 3, 3, 3, 3, -1, -1, -1], [0, 1, 2, 3, 4, 5, 6, 7])
    assert groups(found) == {frozenset({0, 1, 2, 3, 4, 5}), frozenset({6, 7})}


def test_a_tracklet_of_which_nothing_is_clustered_is_a_cluster_of_its_own():
    assert groups(whole([0, 1, 2, 3], [4, 4, 4, -1], [0, 1, 2, 3])) == {frozenset({0, 1, 2}), frozenset({3})}


def test_tracklets_that_share_an_image_are_two_persons():
    # Two tracklets in one cluster, both in image 1: the one with more boxes in the cluster stays.
    found = whole([0, 0, 0, 0, 5], [1, 1, 1, 2, 2], [0, 1, 2, 1, 3])
    assert groups(found) == {frozenset({0, 1, 2}), frozenset({3, 4})}
    # So it is with a box that no tracker has joined.
    assert groups(whole([0, 0, 0], [1, 1, -1], [0, 1, 1])) == {frozenset({0, 1}), frozenset({2})}


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 100_000), st.integers(0, 30))
def test_every_tracklet_has_one_label_and_every_image_one_box_of_it(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    labels, images = rng.integers(0, 6, count), rng.integers(0, 8, count)
    tracklets = rng.integers(-1, 5, count)
    found = keep_tracklets_whole(labels, tracklets, images)
    assert found.shape == labels.shape
    for label in set(found.tolist()):
        assert len(set(images[found == label].tolist())) == (found == label).sum()
    for tracklet in set(tracklets[tracklets >= 0].tolist()):
        rows = np.flatnonzero(tracklets == tracklet)
        first = [rows[images[rows] == image][0] for image in set(images[rows].tolist())]
        assert len(set(found[first].tolist())) == 1
    loose = np.flatnonzero(tracklets < 0)
    for row in loose:  # nothing is joined that was apart, but through a tracklet
        for other in loose:
            assert found[row] != found[other] or labels[row] == labels[other]


def test_without_tracklets_clusters_stay_as_they_are():
    labels, images = np.array([2, 2, 0, 0, 1]), np.arange(5)
    assert groups(keep_tracklets_whole(labels, np.full(5, -1), images).tolist()) == groups(labels.tolist())
    assert keep_tracklets_whole(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)).shape == (0,)


def walks(persons: int, frames: int, noise: float) -> tuple[torch.Tensor, np.ndarray, np.ndarray, np.ndarray]:
    """Persons who are in every frame: features, images, persons, and two tracklets of each person."""
    rng = np.random.default_rng(0)
    person = np.tile(np.arange(persons), frames)
    image = np.repeat(np.arange(frames), persons)
    features = rng.normal(size=(persons, 16))[person] + noise * rng.normal(size=(persons * frames, 16))
    tracklet = 2 * person + (image >= frames // 2)
    return F.normalize(torch.from_numpy(features).float(), dim=1), image, person, tracklet


@pytest.mark.parametrize("eps", [(0.6,), (0.55, 0.6, 0.65)])
def test_tracklets_reach_the_clustering(eps):
    features, images, persons, tracklets = walks(12, 16, noise=0.8)
    without = SelfPacedDBSCAN(eps, k1=8, k2=3).fit(features, images)
    labels = SelfPacedDBSCAN(eps, k1=8, k2=3).fit(features, images, None, tracklets)
    for tracklet in set(tracklets.tolist()):
        assert len(set(labels[tracklets == tracklet].tolist())) == 1
    assert len(set(zip(labels.tolist(), images.tolist(), strict=True))) == len(labels)
    precision, recall = pair_precision_recall(labels, persons)
    before = pair_precision_recall(without, persons)
    assert recall > before[1] + 0.1 and precision >= before[0] - 0.02
    assert (np.unique(labels) == np.arange(labels.max() + 1)).all()


def test_a_row_that_was_never_seen_belongs_to_its_tracklet():
    features, images, _, tracklets = walks(6, 12, noise=0.2)
    features[7] = 0
    labels = SelfPacedDBSCAN((0.6,), k1=8, k2=3).fit(features, images, None, tracklets)
    assert labels[7] == labels[np.flatnonzero(tracklets == tracklets[7])[0]]


def test_tracklets_that_do_not_fit_are_named():
    features, images, _, tracklets = walks(3, 4, noise=0.2)
    with pytest.raises(ValueError, match="tracklet_ids has shape"):
        SelfPacedDBSCAN().fit(features, images, None, tracklets[1:])
