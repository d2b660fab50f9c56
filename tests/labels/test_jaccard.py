"""The sparse Jaccard distance against a slow textbook version, and against the reference's figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from person_search.labels import jaccard, jaccard_distance
from scipy import sparse

from ..tensors import LargestTensor


def textbook(features: np.ndarray, k1: int, k2: int) -> np.ndarray:
    """Zhong et al., section 3, with SpCL's reading of k1, row by row on dense arrays."""
    features = features.astype(np.float64)
    count = len(features)
    squared = (features**2).sum(1)
    original = np.maximum(squared[:, None] + squared[None] - 2 * features @ features.T, 0)
    ranking = original.copy()
    np.fill_diagonal(ranking, -1)
    rank = np.argsort(ranking, axis=1, kind="stable")[:, :k1]
    half = int(np.around(k1 / 2)) + 1

    def reciprocal(i: int, k: int) -> list[int]:
        return [j for j in rank[i, :k] if i in rank[j, :k]]

    codes = np.zeros((count, count))
    for i in range(count):
        members = reciprocal(i, k1)
        expanded = set(members)
        for j in members:
            others = reciprocal(j, half)
            if len(set(others) & set(members)) > 2 / 3 * len(others):
                expanded |= set(others)
        columns = sorted(expanded)
        weight = np.exp(-original[i, columns])
        codes[i, columns] = weight / weight.sum()
    codes = np.stack([codes[rank[i, :k2]].mean(0) for i in range(count)])
    shared = np.array([[np.minimum(codes[i], codes[j]).sum() for j in range(count)] for i in range(count)])
    return 1 - shared / (2 - shared)


def dense(distance: sparse.csr_matrix) -> np.ndarray:
    """What is not stored is 1; explicit zeros stay zeros."""
    full = np.ones(distance.shape, dtype=np.float32)
    entries = distance.tocoo()
    full[entries.row, entries.col] = entries.data
    return full


def clustered_rows(count: int, dimension: int, seed: int, spread: float = 0.6) -> np.ndarray:
    random = np.random.default_rng(seed)
    centres = random.standard_normal((max(1, count // 8), dimension))
    rows = centres[random.integers(0, len(centres), count)] + spread * random.standard_normal((count, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_equals_the_reference(shared: Path) -> None:
    golden = np.load(shared / "golden" / "pseudo_labels.npz")
    distance = jaccard_distance(golden["feature"], int(golden["k1"]), int(golden["k2"]))
    assert np.abs(dense(distance) - golden["distance"]).max() < 1e-5
    assert (distance.diagonal() == 0).all() and distance.data.max() < 1


@pytest.mark.parametrize(("k1", "k2"), [(30, 6), (20, 1), (7, 3), (5, 5), (1, 1), (2, 4)])
@pytest.mark.parametrize("count", [2, 12, 90])
def test_equals_the_textbook(count: int, k1: int, k2: int, device: str) -> None:
    features = clustered_rows(count, 16, seed=count + k1)
    found = dense(jaccard_distance(torch.from_numpy(features).to(device), k1, k2))
    assert np.abs(found - textbook(features, k1, k2)).max() < 1e-5


def test_equals_the_textbook_for_rows_of_any_length() -> None:
    features = clustered_rows(80, 8, seed=3) * np.random.default_rng(0).uniform(0.2, 2, (80, 1)).astype(np.float32)
    assert np.abs(dense(jaccard_distance(features, 10, 4)) - textbook(features, 10, 4)).max() < 1e-5


@pytest.mark.parametrize("max_distance", [0.3, 0.5, 0.72, 0.95])
@pytest.mark.parametrize("block", [64, 1 << 18])
def test_leaves_out_exactly_what_is_too_far(
    max_distance: float, block: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The prefix filter may drop no pair; small blocks cut rows and accumulators many times."""
    for kind in ("CPU", "GPU"):
        monkeypatch.setattr(jaccard, f"_PAIRS_{kind}", block)
        monkeypatch.setattr(jaccard, f"_ACCUMULATOR_{kind}", 16 * block)
    features = torch.from_numpy(clustered_rows(300, 12, seed=5)).to(device)
    complete = jaccard_distance(features, 15, 4)
    near = jaccard_distance(features, 15, 4, max_distance=max_distance)
    assert near.nnz == (complete.data <= np.float32(max_distance)).sum() > 300
    assert near.nnz < complete.nnz
    entries = near.tocoo()
    assert np.abs(entries.data - dense(complete)[entries.row, entries.col]).max() < 1e-6


def test_is_symmetric_canonical_and_complete() -> None:
    features = clustered_rows(200, 16, seed=1)
    distance = jaccard_distance(features, 20, 6)
    assert distance.dtype == np.float32 and distance.shape == (200, 200)
    assert (distance != distance.T).nnz == 0
    rows = np.repeat(np.arange(200), np.diff(distance.indptr))
    assert (np.diff(rows.astype(np.int64) * 200 + distance.indices) > 0).all()
    assert (distance.data[rows == distance.indices] == 0).all() and (rows == distance.indices).sum() == 200


def test_identical_rows_are_stored_as_zeros() -> None:
    features = np.repeat(clustered_rows(2, 8, seed=0), 6, axis=0)
    distance = jaccard_distance(features, 6, 2)
    same = np.kron(np.eye(2), np.ones((6, 6)))
    stored = sparse.csr_matrix((np.ones(distance.nnz), distance.indices, distance.indptr)).toarray()
    assert np.array_equal(stored, same)
    # Which of the identical rows are neighbors is arbitrary, so not all are at distance 0, but the diagonal is.
    assert (distance.diagonal() == 0).all() and distance.data.max() < 0.9


def test_takes_arrays_and_tensors_of_any_float_type() -> None:
    features = np.round(clustered_rows(60, 8, seed=2) * 64) / 64
    expected = jaccard_distance(features, 8, 3)
    for same in (
        features.astype(np.float64),
        torch.from_numpy(features).half(),
        torch.tensor(features).requires_grad_(),
    ):
        distance = jaccard_distance(same, 8, 3)
        assert np.array_equal(distance.indices, expected.indices) and np.allclose(distance.data, expected.data)


@given(count=st.integers(1, 60), seed=st.integers(0, 10_000), k1=st.integers(1, 12), k2=st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_follows_a_permutation_of_the_rows(count: int, seed: int, k1: int, k2: int) -> None:
    random = np.random.default_rng(seed)
    # Multiples of 2^-9: inner products are exact in single precision, whatever the order of summation.
    features = (random.integers(-512, 513, (count, 6)) / 512).astype(np.float32)
    squared = ((features[:, None] - features[None]) ** 2).sum(-1)
    # Ties between neighbors are broken by the order of the rows.
    assume(all(len(np.unique(row)) == count for row in squared))
    order = random.permutation(count)
    distance, permuted = (dense(jaccard_distance(rows, k1, k2)) for rows in (features, features[order]))
    assert np.abs(permuted - distance[np.ix_(order, order)]).max() < 1e-5


def test_does_not_depend_on_the_number_of_threads() -> None:
    features = clustered_rows(1500, 32, seed=4)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(jaccard_distance(features, 20, 6, max_distance=0.8))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert np.array_equal(result.indptr, results[0].indptr) and np.array_equal(result.indices, results[0].indices)
        assert np.abs(result.data - results[0].data).max() < 1e-6


def test_never_builds_a_dense_matrix() -> None:
    features = torch.from_numpy(clustered_rows(5000, 8, seed=6))
    before = torch.get_num_threads()
    # Operations are watched on the calling thread only.
    torch.set_num_threads(1)
    try:
        with LargestTensor() as largest:
            distance = jaccard_distance(features, 10, 3, max_distance=0.72)
    finally:
        torch.set_num_threads(before)
    assert len(features) < largest.elements < len(features) ** 2 // 4
    assert distance.nnz < len(features) ** 2 // 100


@pytest.mark.parametrize("count", [0, 1])
def test_hardly_any_rows(count: int) -> None:
    distance = jaccard_distance(np.ones((count, 4), dtype=np.float32), 30, 6)
    assert distance.shape == (count, count) and distance.nnz == count and (distance.data == 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_names_the_first_row_that_is_not_finite(value: float) -> None:
    features = np.ones((5, 4), dtype=np.float32)
    features[3, 1] = features[4, 0] = value
    with pytest.raises(ValueError, match="2 of 5 feature rows .* the first is row 3"):
        jaccard_distance(features)


def test_rejects_unusable_arguments() -> None:
    features = clustered_rows(10, 4, seed=0)
    with pytest.raises(ValueError, match=r"shape \(4,\), expected \(N, d\)"):
        jaccard_distance(features[0])
    with pytest.raises(ValueError, match="k is 0"):
        jaccard_distance(features, k1=0)
    with pytest.raises(ValueError, match="k2 is 0"):
        jaccard_distance(features, k2=0)
    for max_distance in (0.0, 1.5):
        with pytest.raises(ValueError, match="max_distance is"):
            jaccard_distance(features, max_distance=max_distance)


def test_says_when_too_many_pairs_would_be_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaccard, "MAX_PAIRS", 500)
    with pytest.raises(ValueError, match="more than 500 pairs of 100 rows"):
        jaccard_distance(np.ones((100, 4), dtype=np.float32))
