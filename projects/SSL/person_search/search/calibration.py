"""Calibration of similarities without labels: persons of one frame are different people, so their similarities show
how alike different people look to the model."""

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

LIKELY, UNCERTAIN = 0.05, 0.5
"""Highest rate of false matches at which a hit is called likely, or uncertain."""
FEWEST_PAIRS = 30
"""With fewer pairs of different people there is no calibration."""
_MOST_PAIRS = 20_000  # pairs of tracklets kept in memory while a store is read through
_MOST_ROWS = 20_000  # detections whose embeddings are read
_MEETINGS, _LOOKS = 8, 100  # of two tracklets: frames that they share, at least; of one: detections that are read
_OVERLAP = 0.2  # of the smaller box; more may be two boxes of one person
_TAIL = 0.05  # share of the highest similarities that the law of the tail is fitted to

_Pair = tuple[str, str]


@dataclass(frozen=True)
class Calibration:
    """Similarities of different people, and what a similarity says in their light.

    Attributes:
        similarities: (n,) float64, ascending: of a picture of one person and an appearance of another, as that of a
            hit is.
        pairs: Number of pairs of tracklets that they come from.
        detections_per_appearance: Mean number of detections of the store's tracklets.
    """

    similarities: np.ndarray
    pairs: int
    detections_per_appearance: float = 1.0

    @property
    def known(self) -> bool:
        """Whether there were enough pairs."""
        return self.pairs >= FEWEST_PAIRS

    def share_of_strangers(self, similarity: float) -> float:
        """Share of appearances of other people that look as alike as this or more; NaN where there is no calibration.

        In the tail, where pairs are few, a power of the distance 1 - similarity, which cannot fall below 0, is fitted
        to the highest ones. What is said there is the share to expect given how few pairs there were to fit it to,
        which is higher than that of the best fit; where more lie there than it says, they count.

        Args:
            similarity: Cosine of a query and an appearance.
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
        mean = float(np.mean(np.log((1 - start) / np.maximum(1 - above, nearest))))
        distance = float(np.log((1 - start) / max(1 - similarity, nearest)))
        # An exponential law of the logarithms, its rate as uncertain as so many observations leave it: those of one
        # pair of tracklets are hardly more than one.
        observed = _TAIL * self.pairs
        return max(counted, _TAIL * (1 + distance / (observed * mean)) ** -observed)

    def false_match_rates(self, similarities: np.ndarray, searched: int) -> np.ndarray:
        """Rates of false matches (n,) of hits: the share of strangers to expect among it and those that are more alike.

        Of `searched` appearances of strangers, `searched` times `share_of_strangers` are as alike as a hit. Divided by
        the number of hits that are, that is their rate; a hit has the smallest rate of all cuts at itself or below
        (Benjamini and Hochberg, 1995). So of what is called likely in a search a share of `LIKELY` at most is false, on
        average over searches; and where the person is not there, anything is called likely as seldom.

        Args:
            similarities: (n,), of the hits in any order.
            searched: Number of appearances that were searched.

        Returns:
            (n,) in [0, 1]; NaN where there is no calibration.
        """
        order = np.argsort(-similarities, kind="stable")
        shares = np.array([self.share_of_strangers(similarity) for similarity in similarities[order]])
        falling = np.minimum(max(searched, 1) * shares / np.arange(1, len(order) + 1), 1.0)
        rates = np.empty(len(order))
        rates[order] = np.minimum.accumulate(falling[::-1])[::-1]
        return rates


def verdict_of(rate: float) -> Verdict:
    """What a hit of a rate of false matches is called; "uncertain" where the rate is NaN."""
    if np.isnan(rate):
        return "uncertain"
    return "likely" if rate <= LIKELY else "uncertain" if rate <= UNCERTAIN else "unlikely"


def appearance_vector(embeddings: np.ndarray) -> np.ndarray:
    """Direction (d,) of the mean of an appearance's embeddings (n, d): what a query is compared with.

    The most alike of many looks says less: the more looks there are, the more alike is the most alike of a stranger.
    """
    mean = embeddings.mean(axis=0)
    return mean / max(float(np.linalg.norm(mean)), 1e-12)


def calibrate(store: Store, *, seed: int = 0) -> Calibration:
    """Calibration from all detections of a store.

    Where two tracklets share a frame they show two people. The picture that one has there is compared with the other's
    detections around that frame, as many as the tracklets of the store have: a tracker may have mixed people up before
    or after.

    Args:
        store: Indexed footage.
        seed: Of the choice of pairs and pictures, where there are more than are needed.
    """
    rng = np.random.default_rng(seed)
    met = _Meetings()
    for batch in store.scan(columns=["id", "tracklet", "x0", "y0", "x1", "y1"]):
        boxes = np.column_stack([np.asarray(batch[c], dtype=np.float64) for c in ("x0", "y0", "x1", "y1")])
        met.add(batch["id"].to_pylist(), batch["tracklet"].to_pylist(), boxes, rng)
    sizes = np.array([*met.sizes.values()] or [1])
    looks = _read_looks(store, met)
    similarities: list[float] = []
    used = 0
    for (a, b), frames in sorted(met.of.items()):
        before = len(similarities)
        for one, other, shown in ((a, b, frames), (b, a, [frame[::-1] for frame in frames])):
            if one in looks and other in looks:  # not beyond what is read, nor deleted between the two passes
                for picture, there in shown:
                    if picture in looks[one].place and there in looks[other].place:
                        around = looks[other].around(there, int(rng.choice(sizes)), rng)
                        similarities.append(float(looks[one].of(picture) @ appearance_vector(around)))
        used += len(similarities) > before
    return Calibration(np.sort(np.array(similarities, np.float64)), used, float(sizes.mean()))


class _Meetings:
    """Frames that two tracklets share.

    Attributes:
        of: Of two tracklets, the ids of what each shows in a frame that both are in; of many frames some.
        sizes: Number of detections of every tracklet.
    """

    def __init__(self) -> None:
        self.of: dict[_Pair, list[_Pair]] = {}
        self.sizes: dict[str, int] = {}
        self._mask = 0

    def add(self, ids: list[str], names: list[str], boxes: np.ndarray, rng: np.random.Generator) -> None:
        """Takes detections, those of a frame together."""
        for name in names:
            self.sizes[name] = self.sizes.get(name, 0) + 1
        for first, second in _pairs_of_frames(ids, boxes, rng):
            if names[first] > names[second]:
                first, second = second, first
            pair = names[first], names[second]
            if pair[0] != pair[1] and not _digest(pair) & self._mask:
                frames = self.of.setdefault(pair, [])
                frames.append((ids[first], ids[second]))
                if len(frames) >= 2 * _MEETINGS:
                    del frames[::2]
        while len(self.of) > _MOST_PAIRS:  # every second pair stays, whenever it was or will be met
            self._mask = 2 * self._mask + 1
            self.of = {pair: frames for pair, frames in self.of.items() if not _digest(pair) & self._mask}


@dataclass(frozen=True)
class _Looks:
    """Detections of a tracklet that follow each other: embeddings (n, d), and the place of each id."""

    embeddings: np.ndarray
    place: dict[str, int]

    def of(self, identity: str) -> np.ndarray:
        return self.embeddings[self.place[identity]]

    def around(self, identity: str, count: int, rng: np.random.Generator) -> np.ndarray:
        """So many detections that follow each other, this one among them; fewer where there are no more."""
        total, here = len(self.embeddings), self.place[identity]
        count = min(count, total)
        start = int(rng.integers(max(here - count + 1, 0), min(here, total - count) + 1))
        return self.embeddings[start : start + count]


def _read_looks(store: Store, met: _Meetings, at_once: int = 500) -> dict[str, _Looks]:
    """Detections of as many tracklets as may be read, of a long one those around one of its meetings."""
    wanted: dict[str, str] = {}  # a tracklet, and a detection of it that is read
    rows = 0
    for pair in sorted(met.of, key=_digest):
        new = {name: met.of[pair][0][k] for k, name in enumerate(pair) if name not in wanted}
        rows += sum(min(met.sizes[name], _LOOKS) for name in new)
        if rows > _MOST_ROWS:
            break
        wanted |= new
    names, looks = sorted(wanted), {}
    for start in range(0, len(names), at_once):
        found: dict[str, list[tuple[str, np.ndarray]]] = {}
        where = Filter(tracklets=tuple(names[start : start + at_once]))
        for batch in store.scan(where, ["id", "tracklet", "embedding"]):
            read = zip(batch["tracklet"].to_pylist(), batch["id"].to_pylist(), embeddings_of(batch), strict=True)
            for name, identity, vector in read:
                found.setdefault(name, []).append((identity, vector))
        for name, rows_of in found.items():
            looks[name] = _window(sorted(rows_of, key=lambda row: row[0]), wanted[name])
    return looks


def _window(rows: Sequence[tuple[str, np.ndarray]], identity: str) -> _Looks:
    here = next((place for place, row in enumerate(rows) if row[0] == identity), 0)
    start = min(max(here - _LOOKS // 2, 0), max(len(rows) - _LOOKS, 0))
    kept = rows[start : start + _LOOKS]
    return _Looks(np.stack([vector for _, vector in kept]), {name: place for place, (name, _) in enumerate(kept)})


def _digest(who: _Pair) -> int:
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
