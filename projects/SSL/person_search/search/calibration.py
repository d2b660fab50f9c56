"""Calibration of similarities without labels: persons of one frame are different people, so their similarities show
how alike different people look to the model."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from .store import Filter, embeddings_of

if TYPE_CHECKING:
    import pyarrow as pa

    from .store import Store

Verdict = Literal["likely", "uncertain", "unlikely"]

LIKELY, UNCERTAIN = 0.05, 1.0
"""Most false matches to expect among all that was searched for a hit to be called likely, or uncertain."""
FEWEST_PAIRS = 30
"""With fewer pairs of different people there is no calibration."""
_FRAMES_OF_TWO = 12  # frames looked at of those that two tracklets share
_MOST_PAIRS = 20_000  # pairs of tracklets kept in memory while a store is read through
_MOST_ROWS = 20_000  # detections whose embeddings are read
_OVERLAP = 0.2  # of the smaller box; more may be two boxes of one person
_TAIL, _TAIL_PAIRS = 0.05, 10  # share, and least number, of pairs that the exponential of the tail is fitted to
_SCAN_WHOLE = 50_000  # rows; of larger stores only the embeddings of the chosen pairs are read


@dataclass(frozen=True)
class Calibration:
    """Similarities of different people, and what a similarity says in their light.

    Attributes:
        similarities: (n,) float64, ascending, one for two tracklets that share frames: the highest cosine that the two
            have in one of them, as that of an appearance is the highest of its detections.
        detections_per_appearance: Mean number of detections of a tracklet.
        looks: Mean number of frames that such a highest cosine was taken of.
        growth: By how much the highest cosine of two people rises where it is taken of twice as many frames.
    """

    similarities: np.ndarray
    detections_per_appearance: float = 1.0
    looks: float = 1.0
    growth: float = 0.0

    @property
    def known(self) -> bool:
        """Whether there were enough pairs."""
        return len(self.similarities) >= FEWEST_PAIRS

    def false_match_rate(self, similarity: float, detections: int = 1) -> float:
        """Share of pairs of different people that look as alike as this or more; NaN where there is no calibration.

        In the tail, where pairs are few, an exponential is fitted to the highest ones, one standard error to the safe
        side; where more pairs lie there than it says, they count.

        Args:
            similarity: Highest cosine of the query and the detections of an appearance.
            detections: How many it has: among more of them the most similar one is more similar by chance.
        """
        if not self.known:
            return float("nan")
        more = max(detections, 1) / self.looks
        if more <= 1:
            return self._rate(similarity)
        # Two bounds: so many further looks add their rates at most, and raise the highest cosine as they did before.
        return min(more * self._rate(similarity), self._rate(similarity - self.growth * float(np.log2(more))))

    def _rate(self, similarity: float) -> float:
        pairs = self.similarities
        counted = (len(pairs) - int(np.searchsorted(pairs, similarity, side="left"))) / len(pairs)
        share = max(_TAIL, _TAIL_PAIRS / len(pairs))
        start = float(np.quantile(pairs, 1 - share))
        if similarity <= start:
            return counted
        above = pairs[pairs > start] - start
        excess = float(above.mean()) * (1 + len(above) ** -0.5) if len(above) else 0.0
        fitted = share * float(np.exp(-(similarity - start) / excess)) if excess > 0 else 0.0
        return max(counted, fitted)

    def verdict(self, similarity: float, searched: float, detections: int = 1) -> Verdict:
        """What a hit of this similarity is called.

        Args:
            similarity: Of the hit.
            searched: Number of appearances that were searched: the more, the more alike the most similar stranger is.
            detections: Of the hit, see `false_match_rate`.

        Returns:
            "likely" where at most `LIKELY` false matches of this similarity are to be expected among all that was
            searched, "uncertain" where at most `UNCERTAIN` are or where there is no calibration, else "unlikely".
        """
        if not self.known:
            return "uncertain"
        expected = self.false_match_rate(similarity, detections) * max(searched, 1.0)
        return "likely" if expected <= LIKELY else "uncertain" if expected <= UNCERTAIN else "unlikely"


def calibrate(store: Store, *, seed: int = 0) -> Calibration:
    """Calibration from all detections of a store.

    Args:
        store: Indexed footage.
        seed: Of the choice of frames, where there are more than are needed.
    """
    chosen, rows, tracklets = _choose_pairs(store, np.random.default_rng(seed))
    vectors = _embeddings(store, {identity for pairs in chosen for pair in pairs for identity in pair})
    highest, looks, growths = [], [], []
    for pairs in chosen:
        # A row may have been deleted between the two passes.
        cosines = np.array([float(vectors[a] @ vectors[b]) for a, b in pairs if a in vectors and b in vectors])
        if not len(cosines):
            continue
        highest.append(float(cosines.max()))
        looks.append(len(cosines))
        if len(cosines) >= 4:  # the frames are in random order, so that every second one is a half like any other
            growths.append(highest[-1] - (cosines[::2].max() + cosines[1::2].max()) / 2)
    return Calibration(
        similarities=np.sort(np.asarray(highest, np.float64)),
        detections_per_appearance=rows / max(tracklets, 1),
        looks=float(np.mean(looks)) if looks else 1.0,
        growth=float(np.mean(growths)) if growths else 0.0,
    )


def _choose_pairs(store: Store, rng: np.random.Generator) -> tuple[list[list[tuple[str, str]]], int, int]:
    """For two tracklets that share frames the ids of their detections in some; number of rows and of tracklets."""
    chosen: dict[tuple[str, str], list[tuple[str, str]]] = {}
    seen: dict[tuple[str, str], int] = {}
    tracklets: set[str] = set()
    rows, mask = 0, 0
    for batch in store.scan(columns=["id", "tracklet", "x0", "y0", "x1", "y1"]):
        rows += batch.num_rows
        ids, names = batch["id"].to_pylist(), batch["tracklet"].to_pylist()
        tracklets.update(names)
        boxes = np.column_stack([np.asarray(batch[c], dtype=np.float64) for c in ("x0", "y0", "x1", "y1")])
        for first, second in _pairs_of_frames(ids, boxes, rng):
            a, b = (first, second) if names[first] < names[second] else (second, first)
            who = (names[a], names[b])
            if names[a] == names[b] or _digest(who) & mask:
                continue
            # A random few of the frames that the two share, as one passes them.
            seen[who] = seen.get(who, 0) + 1
            kept = chosen.setdefault(who, [])
            if len(kept) < _FRAMES_OF_TWO:
                kept.insert(int(rng.integers(len(kept) + 1)), (ids[a], ids[b]))
            elif (place := int(rng.integers(seen[who]))) < _FRAMES_OF_TWO:
                kept[place] = (ids[a], ids[b])
        while len(chosen) > _MOST_PAIRS:  # every second pair stays, whenever it was or will be met
            mask = 2 * mask + 1
            chosen = {who: kept for who, kept in chosen.items() if not _digest(who) & mask}
    pairs = sorted(chosen.items(), key=lambda item: _digest(item[0]))
    ends = np.cumsum([2 * len(kept) for _, kept in pairs])
    return [kept for (_, kept), end in zip(pairs, ends, strict=True) if end <= _MOST_ROWS], rows, len(tracklets)


def _digest(who: tuple[str, str]) -> int:
    return zlib.crc32(" ".join(who).encode())


def _pairs_of_frames(
    ids: list[str], boxes: np.ndarray, rng: np.random.Generator, most: int = 12
) -> Iterable[tuple[int, int]]:
    """Places of two persons of one frame whose boxes are apart; of a crowded frame so many at most."""
    frames = [identity.rpartition(":")[0] for identity in ids]
    edges = [0, *(i for i in range(1, len(ids)) if frames[i] != frames[i - 1]), len(ids)]
    for low, high in zip(edges, edges[1:], strict=False):
        first, second = np.triu_indices(high - low, k=1)
        apart = np.flatnonzero(_overlap(boxes[low + first], boxes[low + second]) < _OVERLAP)
        if len(apart) > most:
            apart = rng.choice(apart, most, replace=False)
        yield from ((int(low + first[i]), int(low + second[i])) for i in apart)


def _overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) shared area of boxes (n, 4), as a share of the smaller one."""
    shared = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0).prod(axis=1)
    smaller = np.minimum((a[:, 2:] - a[:, :2]).prod(axis=1), (b[:, 2:] - b[:, :2]).prod(axis=1))
    return shared / np.maximum(smaller, 1e-9)


def _embeddings(store: Store, wanted: set[str], at_once: int = 1000) -> dict[str, np.ndarray]:
    columns = ["id", "embedding"]
    if store.count() <= _SCAN_WHOLE:
        return _take(store.scan(columns=columns), wanted)
    vectors: dict[str, np.ndarray] = {}
    ids = sorted(wanted)
    for start in range(0, len(ids), at_once):
        vectors |= _take(store.scan(Filter(ids=tuple(ids[start : start + at_once])), columns), wanted)
    return vectors


def _take(batches: Iterable[pa.RecordBatch], wanted: set[str]) -> dict[str, np.ndarray]:
    vectors: dict[str, np.ndarray] = {}
    for batch in batches:
        matrix = embeddings_of(batch)
        vectors |= {
            identity: matrix[i].copy() for i, identity in enumerate(batch["id"].to_pylist()) if identity in wanted
        }
    return vectors
