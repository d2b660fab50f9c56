"""Ranks in galleries of listed frames, for a block of queries at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .detections import Members
from .problem import offsets_of, pairs, ranges
from .ranking import Found, Ranks, highest, highest_of_rows, levels

NUM_JOINT = 6
"""Most large galleries that are ranked together."""

# A gallery of at most one in so many frames is small.
_SMALL_GALLERY = 16
# A shortlist has about so many detections or one in so many, whichever is more.
_SHORTLIST, _SHORTLIST_SHARE = 512, 64


def is_small(members: Members, first: int, number: int) -> bool:
    """Whether the galleries of the queries `first`, `first + 1`, ... list but few of all frames."""
    offset, _ = members.frames(first, number)
    return int(np.diff(offset).max()) * _SMALL_GALLERY <= len(members.index.start)


def ranks_of_small(similarity: np.ndarray, found: Found, wanted: np.ndarray, best: int) -> Ranks:
    """Ranks the detections of small galleries, picked from those of b queries.

    Args:
        similarity: (b, K).
        found: the galleries with their true positives.
        wanted: (b,) bool, whether the best of a query are wanted.
        best: how many.
    """
    index, (listed, frame) = found.members.index, found.members.frames(found.first, len(similarity))
    count = index.count[frame]
    start, position = offsets_of(count)[listed], ranges(index.start[frame], count)
    row, column = _table_places(start)
    picked = np.full((len(similarity), column.max(initial=0) + 1), -np.inf, similarity.dtype)
    picked[row, column] = similarity[row, position]
    retrieved = np.zeros(len(found.value), np.int64)
    row, column = _table_places(found.offset)
    for place in range(column.max(initial=-1) + 1):
        hit = np.flatnonzero(column == place)
        retrieved[hit] = np.count_nonzero(picked[row[hit]] >= found.value[hit, None], axis=1)
    picked[~wanted] = -np.inf
    row, column = highest_of_rows(picked, best)
    return Ranks(retrieved, row, position[start[row] + column], picked[row, column])


class JointRanks:
    """Ranks b queries in several large galleries of listed frames: a similarity is looked at once for all of them.

    Args:
        similarity: (b, K), K > 0.
        found: G <= `NUM_JOINT` galleries with their true positives, all of the same queries.
    """

    def __init__(self, similarity: np.ndarray, found: Sequence[Found]) -> None:
        self._similarity, self._found = similarity, found
        index = found[0].members.index
        self._frame, num_frames = index.frame, len(index.start)
        # Bit g of a query's frame: the g-th gallery lists it.
        bits = np.zeros(len(similarity) * num_frames, np.uint8)
        for gallery, one in enumerate(found):
            offset, frame = one.members.frames(one.first, len(similarity))
            place = np.repeat(np.arange(0, len(bits), num_frames), np.diff(offset))
            place += frame
            bits[place] |= np.uint8(1 << gallery)
        self._bits = bits.reshape(len(similarity), num_frames)

    def ranks(self, wanted: np.ndarray, best: int) -> list[Ranks]:
        """The ranks in each gallery.

        Args:
            wanted: (b,) bool, whether the best of a query are wanted.
            best: how many.
        """
        places = self._best(wanted, best)
        retrieved = self._retrieved()
        return [Ranks(count, *place, self._similarity[place]) for count, place in zip(retrieved, places, strict=True)]

    def _retrieved(self) -> list[np.ndarray]:
        """How many detections of each gallery are at least as similar as its true positives: for each (t,) int64."""
        found = self._found
        row = np.concatenate([_table_places(one.offset)[0] for one in found])
        value = np.concatenate([one.value for one in found])
        gallery = np.repeat(np.arange(len(found)), [len(one.value) for one in found])
        # Galleries share most of their true positives: detections are counted once for each similarity of a query.
        order = np.lexsort((value, row))
        row, value = row[order], value[order]
        is_new = np.ones(len(order), bool)
        is_new[1:] = (np.diff(row) != 0) | (np.diff(value) != 0)
        threshold = np.empty(len(order), np.int64)
        threshold[order] = np.cumsum(is_new) - 1
        start = offsets_of(np.bincount(row[is_new], minlength=len(self._similarity)))
        count = self._at_least(start, value[is_new])[threshold, gallery]
        return np.split(count, np.cumsum([len(one.value) for one in found])[:-1])

    def _at_least(self, start: np.ndarray, threshold: np.ndarray) -> np.ndarray:
        """Detections of each gallery that reach thresholds.

        Args:
            start: (b + 1,); the thresholds of the i-th query are `start[i], ..., start[i + 1] - 1`, rising.
            threshold: (U,).

        Returns:
            (U, G) int64.
        """
        codes = 1 << len(self._found)
        # Detections by the highest threshold that they reach and by the galleries that list their frame.
        number = np.zeros((len(threshold), codes), np.int64)
        for row in np.flatnonzero(np.diff(start)).tolist():
            own, similarity = threshold[start[row] : start[row + 1]], self._similarity[row]
            candidates = np.flatnonzero(similarity >= own[0])
            code = levels(similarity.take(candidates), own[1:])
            code *= codes
            code += self._bits[row].take(self._frame.take(candidates))
            counted = np.bincount(code, minlength=len(own) * codes)
            number[start[row] : start[row + 1]] = counted.reshape(-1, codes)
        count = number @ (np.arange(codes)[:, None] >> np.arange(len(self._found)) & 1)
        above = np.zeros((len(count) + 1, count.shape[1]), np.int64)
        above[:-1] = count[::-1].cumsum(axis=0)[::-1]
        return above[:-1] - above[np.repeat(start[1:], np.diff(start))]

    def _best(self, wanted: np.ndarray, number: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Rows, rising, and positions in the index of the best in each gallery, and of all that equal the last."""
        value, position = shortlist(self._similarity, wanted)
        bits = self._bits[np.arange(len(value))[:, None], self._frame[position]]
        best = []
        for gallery, one in enumerate(self._found):
            listed = np.where(bits & np.uint8(1 << gallery), value, -np.inf)
            missing = wanted & (np.count_nonzero(listed > -np.inf, axis=1) < number)
            listed[missing] = -np.inf
            row, column = highest_of_rows(listed, number)
            rows, positions = [row], [position[row, column]]
            for query in np.flatnonzero(missing):
                positions.append(highest(one.members.masked(one.first + query, self._similarity[query]), number))
                rows.append(np.full(len(positions[-1]), query))
            row = np.concatenate(rows)
            order = np.argsort(row, kind="stable")
            best.append((row[order], np.concatenate(positions)[order]))
        return best


def shortlist(similarity: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The highest similarities of each query: some hundreds, and every one that equals the last of them.

    Args:
        similarity: (b, K), K > 0.
        wanted: (b,) bool; the list of the other queries is empty. So it is where so many are equal that it would be
            long.

    Returns:
        Similarities (b, S), filled up with -inf, and their positions in the row (b, S) int64.
    """
    num_queries, num_detections = similarity.shape
    length = max(_SHORTLIST, num_detections // _SHORTLIST_SHARE)
    # What 40 % of 2 n groups reach with their greatest is reached by some n values, and no others have to be sorted.
    groups = min(2 * length, num_detections)
    size, needed = num_detections // groups, min(int(0.8 * length), groups)
    greatest = similarity[:, : size * groups].reshape(num_queries, size, groups).max(axis=1)
    reached = similarity >= np.partition(greatest, -needed, axis=1)[:, -needed, None]
    reached[~wanted | (np.count_nonzero(reached, axis=1) > 4 * length)] = False
    row, position = np.divmod(np.flatnonzero(reached), num_detections)
    place = _table_places(offsets_of(np.bincount(row, minlength=num_queries)))
    value = np.full((num_queries, place[1].max(initial=0) + 1), -np.inf, similarity.dtype)
    positions = np.zeros(value.shape, np.int64)
    value[place], positions[place] = similarity[row, position], position
    return value, positions


def _table_places(offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns (offset[-1],) in a table of the rows that `offset` (n + 1,) delimits."""
    return pairs(np.zeros(len(offset) - 1, np.int64), np.diff(offset))
