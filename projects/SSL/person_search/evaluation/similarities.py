"""Similarities of a block of queries to all detections: read at single places, and ranked without sorting them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from .listed_ranks import NUM_JOINT, JointRanks, is_small, ranks_of_small
from .ranking import Found, Ranks, count_at_least, highest


class Similarities(Protocol):
    """Similarities (b, K) of b queries to all detections, wherever they are held."""

    def __len__(self) -> int:
        """b."""

    def at(self, row: np.ndarray, position: np.ndarray) -> np.ndarray:
        """Those of n pairs of a query of the block and a detection, both (n,) integer."""

    def array(self) -> np.ndarray:
        """All of them."""

    def ranks(self, found: Sequence[Found], wanted: np.ndarray, best: int) -> list[Ranks]:
        """Ranks the detections of each query in each of several galleries.

        Args:
            found: the galleries with their true positives, all of the b queries.
            wanted: (b,) bool, whether the best of a query are wanted.
            best: how many.
        """


class ArraySimilarities:
    """`Similarities` as a NumPy array."""

    def __init__(self, similarity: np.ndarray) -> None:
        self._similarity = similarity

    def __len__(self) -> int:
        return len(self._similarity)

    def at(self, row: np.ndarray, position: np.ndarray) -> np.ndarray:
        return self._similarity[row, position]

    def array(self) -> np.ndarray:
        return self._similarity

    def ranks(self, found: Sequence[Found], wanted: np.ndarray, best: int) -> list[Ranks]:
        ranks, large = {}, []
        for number, one in enumerate(found):
            if one.members is None or one.members.galleries.frame is None:
                ranks[number] = self._ranks(one, wanted, best)
            elif is_small(one.members, one.first, len(self)):
                ranks[number] = ranks_of_small(self._similarity, one, wanted, best)
            else:
                large.append(number)
        for start in range(0, len(large), NUM_JOINT):
            numbers = large[start : start + NUM_JOINT]
            joint = self._joint_ranks([found[number] for number in numbers], wanted, best)
            ranks.update(zip(numbers, joint, strict=True))
        return [ranks[number] for number in range(len(found))]

    def _joint_ranks(self, found: Sequence[Found], wanted: np.ndarray, best: int) -> list[Ranks]:
        if len(found) == 1 or not self._similarity.size:
            return [self._ranks(one, wanted, best) for one in found]
        return JointRanks(self._similarity, found).ranks(wanted, best)

    def _ranks(self, found: Found, wanted: np.ndarray, best: int) -> Ranks:
        """Ranks query by query."""
        retrieved = np.zeros(len(found.value), np.int64)
        best_position, best_value = [], []
        for row, own in enumerate(self._similarity):
            values = own if found.members is None else found.members.masked(found.first + row, own)
            hits = slice(found.offset[row], found.offset[row + 1])
            retrieved[hits] = count_at_least(values, found.value[hits])
            best_position.append(highest(values, best) if wanted[row] else np.zeros(0, np.int64))
            best_value.append(values[best_position[-1]])
        best_row = np.repeat(np.arange(len(self)), [len(candidates) for candidates in best_position])
        return Ranks(retrieved, best_row, np.concatenate(best_position), np.concatenate(best_value))
