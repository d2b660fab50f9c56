"""Diagnostics against counting every pair."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from person_search.labels import multi_label_precision_recall, pair_precision_recall


def ratio(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


@given(count=st.integers(0, 30), clusters=st.integers(1, 8), persons=st.integers(1, 8), seed=st.integers(0, 10_000))
@settings(max_examples=100, deadline=None)
def test_pairs_equal_counting_them(count: int, clusters: int, persons: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    labels, person_ids = random.integers(0, clusters, count), random.integers(-1, persons, count)
    known = [i for i in range(count) if person_ids[i] >= 0]
    pairs = [(labels[i] == labels[j], person_ids[i] == person_ids[j]) for i, j in itertools.combinations(known, 2)]
    correct = sum(claimed and true for claimed, true in pairs)
    expected = ratio(correct, sum(c for c, _ in pairs)), ratio(correct, sum(t for _, t in pairs))
    assert pair_precision_recall(labels, person_ids) == pytest.approx(expected)


@given(count=st.integers(1, 20), queries=st.integers(0, 6), persons=st.integers(1, 5), seed=st.integers(0, 10_000))
@settings(max_examples=100, deadline=None)
def test_multi_labels_equal_counting_them(count: int, queries: int, persons: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    multi_labels = random.random((queries, count)) < 0.4
    rows, person_ids = random.integers(0, count, queries), random.integers(-1, persons, count)
    claimed = correct = true = 0
    for q, row in enumerate(rows):
        for j in range(count):
            if j != row and person_ids[row] >= 0 and person_ids[j] >= 0:
                same = person_ids[row] == person_ids[j]
                claimed, true = claimed + multi_labels[q, j], true + same
                correct += multi_labels[q, j] and same
    expected = ratio(correct, claimed), ratio(correct, true)
    assert multi_label_precision_recall(multi_labels, rows, person_ids) == pytest.approx(expected)
    tensors = (torch.from_numpy(multi_labels), torch.from_numpy(rows), torch.from_numpy(person_ids))
    assert multi_label_precision_recall(*tensors) == pytest.approx(expected)


def test_pairs_are_not_listed() -> None:
    """Half a million rows have 1e11 pairs: only counting by groups can answer."""
    labels = np.arange(500_000) // 4
    precision, recall = pair_precision_recall(torch.from_numpy(labels), labels // 2)
    # Clusters of 4 within persons of 8: 6 of 28 pairs each half.
    assert precision == 1.0 and recall == pytest.approx(2 * 6 / 28)


def test_rejects_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"labels \(3,\) and person_ids \(2,\)"):
        pair_precision_recall([0, 1, 2], [0, 1])
    with pytest.raises(ValueError, match=r"multi_labels has shape \(2, 3\), expected \(1, 3\)"):
        multi_label_precision_recall(np.zeros((2, 3), dtype=bool), [0], [0, 1, 2])
