"""HDBSCAN on a sparse matrix against scikit-learn's on the full one, and where scikit-learn's alone would fail."""

from __future__ import annotations

import numpy as np
from person_search.labels.clustering import dbscan, hdbscan
from scipy import sparse
from sklearn.cluster import HDBSCAN
from sklearn.metrics import adjusted_rand_score


def blobs(sizes: list[int], spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Distances, scaled to 0..1, of rows around centres that are far apart, and their groups."""
    random = np.random.default_rng(seed)
    group = np.repeat(np.arange(len(sizes)), sizes)
    rows = 10 * group[:, None] + spread * random.standard_normal((len(group), 2))
    full = np.linalg.norm(rows[:, None] - rows[None], axis=-1)
    return np.minimum(full / 20, 1), group


def stored_below(full: np.ndarray, limit: float) -> sparse.csr_matrix:
    row, column = np.nonzero(full <= limit)
    return sparse.csr_matrix((full[row, column].astype(np.float32), (row, column)), shape=full.shape)


def test_finds_separate_groups_as_on_the_full_matrix() -> None:
    full, group = blobs([12, 30, 8, 20], spread=0.4)
    labels = hdbscan(stored_below(full, 0.3), 0.3, 4)
    expected = HDBSCAN(min_cluster_size=4, min_samples=4, metric="precomputed", copy=True).fit_predict(full)
    assert adjusted_rand_score(group, expected) == 1.0
    assert adjusted_rand_score(group, labels) == 1.0 and set(labels.tolist()) == {0, 1, 2, 3}


def test_splits_a_group_that_dbscan_would_join() -> None:
    """Two dense parts joined by a thin bridge are one component at eps, and two clusters of greater mass."""
    random = np.random.default_rng(1)
    parts = [random.uniform((x, -0.2), (x + 0.4, 0.2), (40, 2)) for x in (0, 3)]
    bridge = np.stack([np.linspace(0.5, 2.5, 6), np.zeros(6)], axis=1)
    rows = np.concatenate([*parts, bridge])
    full = np.linalg.norm(rows[:, None] - rows[None], axis=-1) / 4
    assert dbscan(stored_below(full, 0.3), 0.3, 5).max() == 0
    labels = hdbscan(stored_below(full, 0.3), 0.3, 5)
    assert len(set(labels[:40])) == 1 and len(set(labels[40:80])) == 1 and labels[0] != labels[40]


def test_one_group_is_a_cluster_and_lone_rows_are_not() -> None:
    full, group = blobs([15, 1, 1, 1], spread=0.3)
    labels = hdbscan(stored_below(full, 0.3), 0.3, 4)
    assert np.array_equal(labels, np.where(group == 0, 0, -1))


def test_rows_within_reach_of_too_few_are_in_no_cluster() -> None:
    full, _ = blobs([15, 3], spread=0.1)
    labels = hdbscan(stored_below(full, 0.3), 0.3, 4)
    assert (labels[:15] == 0).all() and (labels[15:] == -1).all()


def test_identical_rows_form_a_cluster() -> None:
    full, group = blobs([10, 6], spread=0.0)
    assert adjusted_rand_score(group, hdbscan(stored_below(full, 0.3), 0.3, 4)) == 1.0


def test_nothing_to_cluster() -> None:
    assert hdbscan(sparse.csr_matrix((0, 0), dtype=np.float32), 0.5, 4).shape == (0,)
    apart = stored_below(1 - np.eye(5), 0.5)
    assert hdbscan(apart, 0.5, 4).tolist() == [-1] * 5
