"""Counts and highest values against sorting, with ties and at the sizes where the method changes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from person_search.evaluation.problem import offsets_of, pairs, ranges
from person_search.evaluation.ranking import count_at_least, count_at_least_in_group, highest

values_with_ties = st.lists(st.integers(-3, 3), max_size=30).map(lambda v: np.array(v, np.float32))


@pytest.mark.parametrize("size", [1, 50, 3000, 9000])
@pytest.mark.parametrize("num_thresholds", [0, 1, 5, 7, 200])
def test_count_at_least(size, num_thresholds):
    rng = np.random.default_rng(size)
    values = rng.integers(-40, 40, size).astype(np.float32)
    kept = values.copy()
    thresholds = rng.integers(-50, 50, num_thresholds).astype(np.float32)
    expected = [(values >= threshold).sum() for threshold in thresholds]
    assert count_at_least(values, thresholds).tolist() == expected
    np.testing.assert_array_equal(values, kept)  # a sort in place would shuffle the caller's similarities


@given(values_with_ties, st.randoms(use_true_random=False))
def test_count_at_least_in_group(values, random):
    group = np.sort(np.array([random.randrange(3) for _ in values], np.int64))
    expected = [int(((values >= v) & (group == g)).sum()) for v, g in zip(values, group, strict=True)]
    assert count_at_least_in_group(group, values).tolist() == expected


@given(values_with_ties, st.integers(1, 12))
def test_highest_of_few(values, count):
    bound = np.sort(values)[-min(count, len(values))] if len(values) else 0
    assert highest(values, count).tolist() == np.flatnonzero(values >= bound).tolist()


@pytest.mark.parametrize("size", [639, 640, 641, 5000])
@pytest.mark.parametrize("spread", [4, 100_000])
def test_highest_of_many(size, spread):
    values = np.random.default_rng(size).integers(0, spread, size).astype(np.float32)
    values[::3] = -np.inf
    assert highest(values, 10).tolist() == np.flatnonzero(values >= np.sort(values)[-10]).tolist()


def test_excluded_values_are_never_among_the_highest():
    values = np.full(1000, -np.inf, np.float32)
    values[[3, 700]] = -5
    assert highest(values, 10).tolist() == [3, 700]
    assert highest(values[:3], 10).tolist() == []


def test_ranges_and_pairs():
    start, count = np.array([5, 9, 0]), np.array([2, 0, 3])
    assert ranges(start, count).tolist() == [5, 6, 0, 1, 2]
    assert ranges(start[:0], count[:0]).tolist() == []
    assert [array.tolist() for array in pairs(start, count)] == [[0, 0, 2, 2, 2], [5, 6, 0, 1, 2]]
    assert offsets_of([2, 0, 3]).tolist() == [0, 2, 2, 5]
