"""Ranks of detections, without sorting all similarities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .detections import Members
from .problem import offsets_of, ranges

# Number of values per threshold from which on a pass of comparisons per threshold is cheaper than a sort.
_VALUES_A_PASS = 512
# Elements of a group, of which only the maximum is compared when searching for the highest values.
_GROUP = 64


def count_at_least(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Number of values that are at least as high as each threshold.

    Args:
        values: (n,) of the same dtype as the thresholds.
        thresholds: (T,).

    Returns:
        (T,) int64.
    """
    candidates = values if len(thresholds) <= 4 else values.compress(values >= thresholds.min())
    if len(thresholds) <= 1 + len(candidates) // _VALUES_A_PASS:
        return np.array([np.count_nonzero(candidates >= threshold) for threshold in thresholds], np.int64)
    candidates = np.sort(candidates)
    return len(candidates) - candidates.searchsorted(thresholds, "left")


def count_at_least_in_group(group: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Number of values in the group of each value (including itself) that are at least as high.

    Args:
        group: (n,) integer.
        values: (n,).

    Returns:
        (n,) int64.
    """
    order = np.lexsort((-values, group))
    group, values = group[order], values[order]
    # Equal values count for each other: up to the last one.
    is_last = np.ones(len(values), bool)
    is_last[:-1] = (np.diff(values) != 0) | (np.diff(group) != 0)
    last = np.flatnonzero(is_last)[np.cumsum(is_last) - is_last]
    count = np.empty(len(order), np.int64)
    count[order] = last + 1 - np.searchsorted(group, group)
    return count


def highest(values: np.ndarray, count: int) -> np.ndarray:
    """Positions, ascending, of the `count` highest values and of all values equal to the lowest of these.

    Args:
        values: (n,); -inf never counts.
        count: >= 1.

    Returns:
        (m,) int64, m >= min(count, number of finite values).
    """
    groups = len(values) // _GROUP
    if groups < count:
        bound = -np.inf if len(values) <= count else np.partition(values, -count)[-count]
    else:
        # The maxima of `count` groups reach the bound, and so do `count` values.
        greatest = values[: groups * _GROUP].reshape(_GROUP, groups).max(axis=0)
        bound = np.partition(greatest, -count)[-count]
    candidates = np.flatnonzero(values >= bound)
    if len(candidates) > count:
        best = values[candidates]
        candidates = candidates[best >= np.partition(best, -count)[-count]]
    return candidates[values[candidates] > -np.inf]


@dataclass(frozen=True)
class Found:
    """True positives of b queries in a gallery.

    Attributes:
        members: the gallery; None for all detections except those with a similarity of -inf.
        first: first query.
        offset: (b + 1,); those of the i-th query are `offset[i], ..., offset[i + 1] - 1`.
        position: (t,) int64, positions in a `DetectionIndex`.
        value: (t,) similarities.
    """

    members: Members | None
    first: int
    offset: np.ndarray
    position: np.ndarray
    value: np.ndarray


@dataclass(frozen=True)
class Ranks:
    """Ranks of b queries, as far as metrics need them.

    Attributes:
        retrieved: (t,) int64, number of detections of the gallery at least as similar as each true positive.
        best_row: (m,) int64, ascending: query of each best detection, from 0 within the block.
        best_position: (m,) int64, positions in a `DetectionIndex`, unordered within a query, including all that equal
            the last of the best.
        best_value: (m,) similarities.
    """

    retrieved: np.ndarray
    best_row: np.ndarray
    best_position: np.ndarray
    best_value: np.ndarray


def rank(similarity: np.ndarray, found: Found, wanted: np.ndarray, best: int) -> Ranks:
    """Ranks of the detections of each query in a gallery.

    Args:
        similarity: (b, K).
        found: gallery with the true positives of the b queries.
        wanted: (b,) bool, whether to return the best detections of a query.
        best: number of best detections.
    """
    listed = None
    if found.members is not None and found.members.galleries.frame is not None:
        listed = _Listed(found.members, found.first, len(similarity))
    retrieved = np.zeros(len(found.value), np.int64)
    best_position, best_value = [], []
    for row, own in enumerate(similarity):
        position = None
        if listed is not None:
            position = listed.position[listed.offset[row] : listed.offset[row + 1]]
            values = own.take(position)
        else:
            values = own if found.members is None else found.members.masked(found.first + row, own)
        hits = slice(found.offset[row], found.offset[row + 1])
        retrieved[hits] = count_at_least(values, found.value[hits])
        place = highest(values, best) if wanted[row] else np.zeros(0, np.int64)
        best_position.append(place if position is None else position[place])
        best_value.append(values[place])
    best_row = np.repeat(np.arange(len(similarity)), [len(candidates) for candidates in best_position])
    return Ranks(retrieved, best_row, np.concatenate(best_position), np.concatenate(best_value))


class _Listed:
    """Detections in the listed frames of queries: those of the i-th are `position[offset[i]:offset[i + 1]]`."""

    def __init__(self, members: Members, first: int, number: int) -> None:
        frame_offset, frame = members.frames(first, number)
        count = members.index.count[frame]
        self.position = ranges(members.index.start[frame], count)
        self.offset = offsets_of(count)[frame_offset]
