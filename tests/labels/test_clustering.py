"""DBSCAN on a sparse matrix against scikit-learn's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from person_search.labels import jaccard_distance
from person_search.labels.clustering import dbscan, number_by_first_row
from scipy import sparse
from sklearn.cluster import DBSCAN


def stored_below(full: np.ndarray, limit: float) -> sparse.csr_matrix:
    """The entries up to `limit` of a dense matrix, zeros included."""
    row, column = np.nonzero(full <= limit)
    return sparse.csr_matrix((full[row, column], (row, column)), shape=full.shape)


@given(
    count=st.integers(1, 60),
    eps=st.sampled_from([0.05, 0.1, 0.2, 0.5]),
    min_samples=st.integers(1, 6),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=200, deadline=None)
def test_equals_scikit_learn_label_for_label(count: int, eps: float, min_samples: int, seed: int) -> None:
    """On a line border rows between two clusters are common, and rounded places give many distances equal to eps."""
    place = np.round(np.random.default_rng(seed).random(count) * count / 10, 1)
    full = np.abs(place[:, None] - place[None]).round(1).astype(np.float32)
    expected = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed").fit_predict(full)
    assert np.array_equal(dbscan(stored_below(full, 0.6), eps, min_samples), expected)


def test_a_border_row_goes_to_the_first_cluster() -> None:
    place = np.array([20, 21, 22, 23, 0, 1, 2, 3, 11.5])
    full = np.abs(place[:, None] - place[None]).astype(np.float32)
    labels = dbscan(stored_below(full, 50), 8.5, 4)
    assert labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 0]


def test_equals_the_reference(shared: Path) -> None:
    golden = np.load(shared / "golden" / "pseudo_labels.npz")
    distance = jaccard_distance(golden["feature"], max_distance=float(golden["eps"].max()))
    for eps, expected in zip(golden["eps"], golden["dbscan"], strict=True):
        assert np.array_equal(dbscan(distance, float(eps), int(golden["min_samples"])), expected)


def test_no_rows() -> None:
    assert dbscan(sparse.csr_matrix((0, 0), dtype=np.float32), 0.5, 4).shape == (0,)


@pytest.mark.parametrize(
    ("labels", "expected"), [([], []), ([7], [0]), ([5, 2, 5, 9, 2], [0, 1, 0, 2, 1]), ([-1, 3, -1], [0, 1, 0])]
)
def test_numbers_labels_as_they_occur(labels: list[int], expected: list[int]) -> None:
    assert number_by_first_row(np.array(labels, dtype=np.int64)).tolist() == expected
