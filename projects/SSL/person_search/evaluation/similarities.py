"""Similarities of a block of queries to all detections: read at single places, and ranked without sorting them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .members import Members
from .ranking import count_at_least, highest


@dataclass(frozen=True)
class Ranks:
    """What the figures need of the ranking of b queries.

    Attributes:
        retrieved: (t,) int64, how many detections of the gallery are at least as similar as each true positive.
        best_row: (m,) int64, rising: the query, counted from 0 in the block, of each of its best detections.
        best_position: (m,) int64, positions in a `DetectionIndex`; in no order within a query, with all that equal the
            last of the best.
        best_value: (m,) their similarities.
    """

    retrieved: np.ndarray
    best_row: np.ndarray
    best_position: np.ndarray
    best_value: np.ndarray


class Similarities(Protocol):
    """Similarities (b, K) of b queries to all detections, wherever they are held."""

    def __len__(self) -> int:
        """b."""

    def at(self, row: np.ndarray, position: np.ndarray) -> np.ndarray:
        """Those of n pairs of a query of the block and a detection, both (n,) integer."""

    def array(self) -> np.ndarray:
        """All of them."""

    def ranks(
        self, members: Members | None, first: int, offset: np.ndarray, value: np.ndarray, wanted: np.ndarray, best: int
    ) -> Ranks:
        """Ranks the detections of each query's gallery.

        Args:
            members: the galleries; None: all detections but those with -inf.
            first: the query of the first row.
            offset: (b + 1,); the true positives of the i-th query are `offset[i], ..., offset[i + 1] - 1`.
            value: (t,) similarities of the true positives.
            wanted: (b,) bool, whether the best of a query are wanted.
            best: how many.
        """


class ArraySimilarities:
    """`Similarities` as a NumPy array, ranked query by query."""

    def __init__(self, similarity: np.ndarray) -> None:
        self._similarity = similarity

    def __len__(self) -> int:
        return len(self._similarity)

    def at(self, row: np.ndarray, position: np.ndarray) -> np.ndarray:
        return self._similarity[row, position]

    def array(self) -> np.ndarray:
        return self._similarity

    def ranks(
        self, members: Members | None, first: int, offset: np.ndarray, value: np.ndarray, wanted: np.ndarray, best: int
    ) -> Ranks:
        retrieved = np.zeros(len(value), np.int64)
        best_position, best_value = [], []
        for row, own in enumerate(self._similarity):
            values, position = (own, None) if members is None else members.select(first + row, own)
            hits = slice(offset[row], offset[row + 1])
            retrieved[hits] = count_at_least(values, value[hits])
            candidates = highest(values, best) if wanted[row] else np.zeros(0, np.int64)
            best_value.append(values[candidates])
            best_position.append(candidates if position is None else position[candidates])
        best_row = np.repeat(np.arange(len(self)), [len(candidates) for candidates in best_position])
        return Ranks(retrieved, best_row, np.concatenate(best_position), np.concatenate(best_value))
