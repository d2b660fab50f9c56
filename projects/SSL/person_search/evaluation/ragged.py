"""Arrays of rows of unequal length, stored flat: row i is `flat[offset[i]:offset[i + 1]]`."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def offsets_of(count: ArrayLike) -> np.ndarray:
    """Offsets (n + 1,) int64 of n rows with the given lengths (n,)."""
    count = np.asarray(count, np.int64)
    offset = np.zeros(len(count) + 1, np.int64)
    np.cumsum(count, out=offset[1:])
    return offset


def ranges(start: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The integers `start[i], ..., start[i] + count[i] - 1` of every i, one after the other.

    Args:
        start: (n,) integer.
        count: (n,) integer, >= 0.

    Returns:
        (sum of count,) int64.
    """
    end = np.cumsum(count)
    total = int(end[-1]) if len(end) else 0
    return np.arange(total) + np.repeat(start - (end - count), count)


def pairs(start: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of a range and one of its integers, see `ranges`.

    Returns:
        (P,) int64, the range, and (P,) int64, the integer; sorted by range, then integer.
    """
    return np.repeat(np.arange(len(count)), count), ranges(start, count)
