"""Calibration of similarities without labels: persons of one frame are different people, so their similarities show how
similar different people look to the model."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from .store import Filter, embeddings_of

if TYPE_CHECKING:
    from .store import Store

Verdict = Literal["likely", "uncertain", "unlikely"]

LIKELY, UNCERTAIN = 0.05, 1.0
"""Maximum number of false matches expected in the whole search for a hit to be likely, or uncertain."""
FEWEST_PAIRS = 30
"""Minimum number of pairs of different people for a calibration."""
_MOST_PAIRS = 20_000  # pairs of tracklets kept in memory while reading a store
_MOST_ROWS = 20_000  # detections whose embeddings are read
_PICTURES, _LOOKS = 8, 100  # per tracklet: pictures to search for, and detections to search in
_OVERLAP = 0.2  # of the smaller box; above, both may be boxes of one person
_TAIL = 0.05  # fraction of the highest similarities that the tail is fitted to


@dataclass(frozen=True)
class Calibration:
    """Similarities of different people, and what they say about the similarity of a hit.

    Attributes:
        similarities: (n,) float64, ascending: highest cosine between a picture of one person and the appearance of
            another, as the similarity of a hit is the highest of its detections.
        pairs: Number of pairs of tracklets used.
        looks: Mean number of detections of these appearances.
        detections_per_appearance: Mean number of detections over all tracklets of the store.
    """

    similarities: np.ndarray
    pairs: int
    looks: float = 1.0
    detections_per_appearance: float = 1.0

    @property
    def known(self) -> bool:
        """Whether there are enough pairs."""
        return self.pairs >= FEWEST_PAIRS

    def false_match_rate(self, similarity: float) -> float:
        """Share of other people's appearances that look at least as similar; NaN without a calibration.

        In the tail, where pairs are few, a power of the distance 1 - similarity is fitted to the highest similarities
        by maximum likelihood; if more pairs are counted than it predicts, the count is used.

        Args:
            similarity: Highest cosine between a query and the detections of an appearance.
        """
        if not self.known:
            return float("nan")
        values = self.similarities
        counted = (len(values) - int(np.searchsorted(values, similarity, side="left"))) / len(values)
        start = float(np.quantile(values, 1 - _TAIL))
        above = values[values > start]
        if similarity <= start or not len(above):
            return counted
        nearest = 1e-6
        power = 1 / float(np.mean(np.log((1 - start) / np.maximum(1 - above, nearest))))
        return max(counted, _TAIL * (max(1 - similarity, nearest) / (1 - start)) ** power)

    def expected_false_matches(self, similarity: float, detections: int) -> float:
        """Upper bound of the number of false matches of this similarity among detections; NaN without a calibration.

        Every detection is a look at a person, and a tracklet is some of them. `looks` of them have a false match as
        often as `false_match_rate` says, and further ones add at most the same again, whether or not the tracker has
        joined them. So the number of looks counts, not that of tracklets.

        Args:
            similarity: Similarity of a hit.
            detections: Number of detections searched.
        """
        return self.false_match_rate(similarity) * max(detections / self.looks, 1.0)

    def verdict(self, similarity: float, detections: int) -> Verdict:
        """Verdict on a hit.

        Args:
            similarity: Similarity of the hit.
            detections: Number of detections searched: the more there are, the more similar is the best false match.

        Returns:
            "likely" if at most `LIKELY` false matches of this similarity are expected in the search, "uncertain" if at
            most `UNCERTAIN` are or without a calibration, else "unlikely".
        """
        if not self.known:
            return "uncertain"
        expected = self.expected_false_matches(similarity, detections)
        return "likely" if expected <= LIKELY else "uncertain" if expected <= UNCERTAIN else "unlikely"


def calibrate(store: Store, *, seed: int = 0) -> Calibration:
    """Calibration from all detections of a store.

    Two tracklets that share a frame show different people in all of their frames. Pictures of one are searched in the
    other, like a query. If the tracker has mixed up people, the rates are too high, which is conservative.

    Args:
        store: Indexed footage.
        seed: Seed of the choice of pairs and pictures, if there are more than needed.
    """
    rng = np.random.default_rng(seed)
    pairs, sizes = _pairs_of_tracklets(store, rng)
    wanted: dict[str, int] = {}
    for pair in sorted(pairs, key=_digest):
        new = {name: min(sizes[name], _LOOKS) for name in pair if name not in wanted}
        if sum(wanted.values()) + sum(new.values()) > _MOST_ROWS:
            break
        wanted |= new
    vectors = _embeddings(store, sorted(wanted), rng)
    similarities, looks, used = [np.zeros(0)], [], 0
    for a, b in sorted(pairs):
        if a not in vectors or b not in vectors:  # above the limit, or deleted between the two passes
            continue
        used += 1
        for one, other in ((vectors[a], vectors[b]), (vectors[b], vectors[a])):
            pictures = one[:_PICTURES]
            similarities.append((pictures @ other.T).max(axis=1))
            looks += [len(other)] * len(pictures)
    return Calibration(
        similarities=np.sort(np.concatenate(similarities).astype(np.float64)),
        pairs=used,
        looks=float(np.mean(looks)) if looks else 1.0,
        detections_per_appearance=sum(sizes.values()) / max(len(sizes), 1),
    )


def _pairs_of_tracklets(store: Store, rng: np.random.Generator) -> tuple[set[tuple[str, str]], dict[str, int]]:
    """Tracklets that share frames, two and two, and the number of detections of every tracklet."""
    pairs: set[tuple[str, str]] = set()
    sizes: dict[str, int] = {}
    mask = 0
    for batch in store.scan(columns=["id", "tracklet", "x0", "y0", "x1", "y1"]):
        ids, names = batch["id"].to_pylist(), batch["tracklet"].to_pylist()
        for name in names:
            sizes[name] = sizes.get(name, 0) + 1
        boxes = np.column_stack([np.asarray(batch[c], dtype=np.float64) for c in ("x0", "y0", "x1", "y1")])
        for first, second in _pairs_of_frames(ids, boxes, rng):
            pair = (min(names[first], names[second]), max(names[first], names[second]))
            if pair[0] != pair[1] and not _digest(pair) & mask:
                pairs.add(pair)
        while len(pairs) > _MOST_PAIRS:  # every second pair stays, whenever it was or will be met
            mask = 2 * mask + 1
            pairs = {pair for pair in pairs if not _digest(pair) & mask}
    return pairs, sizes


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


def _embeddings(
    store: Store, tracklets: Sequence[str], rng: np.random.Generator, at_once: int = 500
) -> dict[str, np.ndarray]:
    """Embeddings (n, d) of tracklets, of the long ones so many as are looked at, in random order."""
    found: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(tracklets), at_once):
        for batch in store.scan(Filter(tracklets=tuple(tracklets[start : start + at_once])), ["tracklet", "embedding"]):
            matrix = embeddings_of(batch)
            for place, name in enumerate(batch["tracklet"].to_pylist()):
                found.setdefault(name, []).append(matrix[place])
    return {name: rng.permutation(np.stack(rows))[:_LOOKS] for name, rows in sorted(found.items())}
