"""One-to-one matching across images, and the temporal consensus of clusterings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from person_search.labels import SelfPacedDBSCAN, pair_precision_recall
from person_search.labels.clustering import keep_one_to_one
from person_search.labels.self_paced import keep_confirmed
from scipy import sparse


def by_hand(distance: np.ndarray, images: np.ndarray, rounds: int) -> np.ndarray:
    """Pairs of two images, one after the other, on the full matrix: inf where nothing is stored."""
    kept = np.full_like(distance, np.inf)
    np.fill_diagonal(kept, 0)
    for u in np.unique(images):
        for v in np.unique(images[images > u]):
            first, second = list(np.flatnonzero(images == u)), list(np.flatnonzero(images == v))
            for _ in range(rounds):
                if not first or not second:
                    break
                between = distance[np.ix_(first, second)]
                matches = [
                    (first[a], second[b])
                    for a, b in enumerate(between.argmin(axis=1))
                    if between[:, b].argmin() == a and np.isfinite(between[a, b])
                ]
                for i, j in matches:
                    kept[i, j] = kept[j, i] = distance[i, j]
                    first.remove(i)
                    second.remove(j)
    return kept


def stored(dense: np.ndarray) -> sparse.csr_matrix:
    row, column = np.nonzero(np.isfinite(dense))
    pointer = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=len(dense)))])
    return sparse.csr_matrix((dense[row, column].astype(np.float32), column, pointer), shape=dense.shape)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 3))
def test_matches_equal_those_made_by_hand(seed: int, count: int, rounds: int) -> None:
    random = np.random.default_rng(seed)
    images = random.integers(0, 4, count)
    # Few values, so that there are ties; some pairs are too far to be stored, identical rows have distance 0.
    distance = random.integers(0, 6, (count, count)).astype(np.float32) / 8
    distance[random.random((count, count)) < 0.3] = np.inf
    distance = np.minimum(distance, distance.T)
    np.fill_diagonal(distance, 0)
    found = keep_one_to_one(stored(distance), images, rounds)
    dense = np.full((count, count), np.inf, np.float32)
    row = np.repeat(np.arange(count), np.diff(found.indptr))
    dense[row, found.indices] = found.data
    assert np.array_equal(dense, by_hand(distance, images, rounds))
    assert found.has_sorted_indices


def crowd(noise: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """12 images of the same 6 persons, two of whom look almost alike: features, images, identities."""
    random = np.random.default_rng(0)
    looks = random.standard_normal((6, 32))
    looks[1] = looks[0] + 0.45 * random.standard_normal(32)
    person = np.tile(np.arange(6), 12)
    return (
        (looks[person] + noise * random.standard_normal((72, 32))).astype(np.float32),
        np.repeat(np.arange(12), 6),
        person,
    )


def test_matching_parts_persons_that_look_alike() -> None:
    features, images, person = crowd(noise=0.6)
    precision = {}
    for one_to_one in (False, True):
        model = SelfPacedDBSCAN((0.6,), 2, k1=12, k2=3, one_to_one=one_to_one, same_image_rule=True)
        precision[one_to_one], recall = pair_precision_recall(model.fit(features, images), person)
        assert recall > 0.5
    assert precision[True] > precision[False]


def test_confirmed_rows_stay() -> None:
    previous = np.array([0, 0, 0, 0, 1, 1, 2, 3, 4])
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2, 3])
    # Row 3 comes from another cluster (IoU 1/6); rows 6 and 7 were alone (IoU 1/2, which is enough).
    assert keep_confirmed(labels, previous).tolist()[:3] == [0, 0, 0]
    kept = keep_confirmed(labels, previous)
    assert (kept == kept[3]).sum() == 1 and kept[4] == kept[5] and kept[6] == kept[7]
    strict = keep_confirmed(labels, previous, least=0.6)
    assert strict[6] != strict[7] and strict[4] == strict[5] and strict[0] == strict[1]


def test_consensus_remembers_the_last_clustering(tmp_path) -> None:
    features, images, _ = crowd(noise=0.3)
    other = features.copy()
    other[::5] = other[np.roll(np.arange(len(other)), 7)][::5]
    plain = SelfPacedDBSCAN((0.6,), 2, k1=12, k2=3)
    model, resumed = (SelfPacedDBSCAN((0.6,), 2, k1=12, k2=3, consensus=True) for _ in range(2))
    first = model.fit(features, images)
    assert np.array_equal(first, plain.fit(features, images))  # nothing to compare with yet
    torch.save(model.state_dict(), tmp_path / "state.pth")
    resumed.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    second = model.fit(other, images)
    assert np.array_equal(second, resumed.fit(other, images))
    free = plain.fit(other, images)
    expected = keep_confirmed(free, first)
    assert not np.array_equal(second, free)
    assert np.array_equal(second[:, None] == second, expected[:, None] == expected)
    with pytest.raises(ValueError, match="10 features, but the last fit had 72"):
        model.fit(features[:10], images[:10])
