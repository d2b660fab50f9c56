"""Search of a store for a person: from query pictures to appearances with a verdict each."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import PersonSearchError
from .calibration import Calibration, Verdict, appearance_vector, calibrate, verdict_of
from .store import EVERYTHING, Filter, embeddings_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from .searcher import Detections, ImageLike, PersonSearcher
    from .store import Store

RERANKED = 500
"""Most similar detections that re-ranking puts in order."""
_MOST_ROWS = 32_000  # detections looked through for enough appearances
_CANDIDATES = 50  # appearances, at least, that are compared as a whole; of each so many detections at most:
_LOOKS = 32
_IDS_AT_ONCE = 500
_WHOLE_PICTURE = 1.3  # times as high as wide: so is a picture that was cut around one person


class QueryError(PersonSearchError):
    """A query picture shows no person, or several and no box says which.

    Attributes:
        detections: What was found in it.
    """

    def __init__(self, message: str, detections: Detections) -> None:
        super().__init__(message)
        self.detections = detections


@dataclass(frozen=True)
class QueryPerson:
    """A person in a query picture.

    Attributes:
        picture: Name of the picture.
        box: x0, y0, x1, y1 in pixels of the upright picture.
        embedding: (d,) float32 of unit length.
        chosen: "given" for a box of the user's, "detected", "stored" for a detection of the store, or "whole" for a
            picture without a detection that looks cut around one person.
    """

    picture: str
    box: tuple[float, float, float, float]
    embedding: np.ndarray
    chosen: str


@dataclass(frozen=True)
class DetectionRef:
    """A stored detection.

    Attributes:
        id: Its id.
        frame: Number of its frame in the source.
        offset: Seconds from the source's start.
        box: x0, y0, x1, y1 in pixels of the upright picture.
        score: Of the detector, 0..1.
    """

    id: str
    frame: int
    offset: float
    box: tuple[float, float, float, float]
    score: float


@dataclass(frozen=True)
class Appearance:
    """A tracklet that may show the person.

    Attributes:
        camera, source, tracklet: Where it is.
        start, end: Times of its first and last detection, None where unknown.
        start_offset, end_offset: The same in seconds from the source's start.
        similarity: Cosine of the query and the mean of its detections.
        verdict: "likely", "uncertain" or "unlikely".
        false_match_rate: Share of strangers to expect among it and the hits that are more similar; NaN where the store
            holds too few frames with several persons to know.
        best: Its detection that is most similar to the query.
        detections: How many it has.
        is_query: Whether a query was taken from it: it is no hit, and its rate says nothing.
    """

    camera: str
    source: str
    tracklet: str
    start: datetime | None
    end: datetime | None
    start_offset: float
    end_offset: float
    similarity: float
    verdict: Verdict
    false_match_rate: float
    best: DetectionRef
    detections: int
    is_query: bool


@dataclass(frozen=True)
class SearchAnswer:
    """Answer of a search.

    Attributes:
        appearances: The best first.
        calibration: What the verdicts rest on.
        searched: Number of appearances that were searched, estimated from the number of detections.
        queries: The persons asked for, where the caller has named them.
    """

    appearances: tuple[Appearance, ...]
    calibration: Calibration
    searched: int
    queries: tuple[QueryPerson, ...] = ()

    @property
    def likely(self) -> tuple[Appearance, ...]:
        """Appearances that are likely, without those that the queries were taken from."""
        return tuple(a for a in self.appearances if a.verdict == "likely" and not a.is_query)

    @property
    def found(self) -> bool:
        """Whether one is likely. If not, "not there" is the answer."""
        return bool(self.likely)


def query_person(
    searcher: PersonSearcher, image: ImageLike, box: Sequence[float] | None = None, *, name: str | None = None
) -> QueryPerson:
    """Person of a query picture: the one in the box, or the only one that is detected.

    Args:
        searcher: The model of the store.
        image: A picture.
        box: x0, y0, x1, y1 in pixels of the upright picture.
        name: Of the picture, for messages; by default its path.

    Raises:
        QueryError: No box was given, and the picture shows no person or several. A picture without a detection that is
            higher than wide is taken whole, as one that was cut around a person.
        PictureError: The picture or the box is of the wrong kind, or the box lies outside.
    """
    from .searcher import read_picture

    name = name or (str(image) if isinstance(image, (str, bytes)) or hasattr(image, "__fspath__") else "the picture")
    picture = read_picture(image)
    if box is not None:
        embedding = searcher.embed(picture, np.asarray(box, dtype=np.float64).reshape(1, -1))[0]
        return QueryPerson(name, _box(box), embedding, "given")
    found = searcher.detect(picture)
    if len(found) == 1:
        return QueryPerson(name, _box(found.boxes[0]), found.embeddings[0], "detected")
    height, width = found.image_size
    if not len(found) and height >= _WHOLE_PICTURE * width:
        whole = (0.0, 0.0, float(width), float(height))
        return QueryPerson(name, whole, searcher.embed(picture, np.array([whole]))[0], "whole")
    if not len(found):
        raise QueryError(f"{name}: no person is detected; say where the person is with a box", found)
    listed = "; ".join(
        f"{number}: {' '.join(f'{v:.0f}' for v in box)} (score {score:.2f})"
        for number, (box, score) in enumerate(zip(found.boxes, found.scores, strict=True), 1)
    )
    raise QueryError(f"{name}: {len(found)} persons are detected; say which with a box: {listed}", found)


def stored_person(store: Store, identity: str) -> QueryPerson:
    """A stored detection as a query.

    Raises:
        PersonSearchError: The store has no detection of this id.
    """
    for batch in store.scan(Filter(ids=(identity,)), ["id", "x0", "y0", "x1", "y1", "embedding"]):
        for row, embedding in zip(batch.to_pylist(), embeddings_of(batch), strict=True):
            box = _box([row[name] for name in ("x0", "y0", "x1", "y1")])
            return QueryPerson(identity, box, embedding.copy(), "stored")
    raise PersonSearchError(f"{store.uri} has no detection {identity}; ids are printed by a search")


def find_person(
    store: Store,
    embeddings: np.ndarray,
    *,
    where: Filter = EVERYTHING,
    top: int = 20,
    rerank: bool = False,
    calibration: Calibration | None = None,
    negatives: np.ndarray | None = None,
    queries: Sequence[QueryPerson] = (),
    own: Sequence[str] = (),
) -> SearchAnswer:
    """Appearances in a store that look like a person, the best first.

    Several pictures of the person are joined to one query: the direction of their mean. Appearances are found by their
    most similar detections and compared as a whole: one look deceives more easily than many.

    Args:
        store: Indexed footage.
        embeddings: (q, d) or (d,), pictures of one person.
        where: What is searched.
        top: Appearances that are wanted.
        rerank: Whether k-reciprocal re-ranking puts the most similar detections in order. Similarities and verdicts
            stay as they are.
        calibration: Of an earlier answer, as long as the store has not changed much; None makes a new one.
        negatives: (n, d), detections that were marked wrong. What looks more like one of them than like every query
            picture is left out.
        queries: Handed through to the answer.
        own: Ids of detections that the embeddings are of: their appearances come first, and prove nothing.

    Raises:
        PersonSearchError: The embeddings have another shape than the store's, or `top` is below 1.
    """
    if top < 1:
        raise PersonSearchError(f"top is {top}, expected at least 1")
    asked = _unit(np.atleast_2d(np.asarray(embeddings, np.float32)))
    if calibration is None:
        calibration = calibrate(store)
    joined = asked.sum(axis=0)
    rows = _most_similar(store, joined, where, top, rerank or negatives is not None)
    if negatives is not None and len(negatives):
        rows = _without(rows, asked, np.atleast_2d(np.asarray(negatives, np.float32)))
    order = _reranked(rows, joined) if rerank and len(rows) else None
    searched = max(round(store.count(where) / max(calibration.detections_per_appearance, 1.0)), 1)
    known = {*own, *(query.picture for query in queries if query.chosen == "stored")}
    candidates = _candidates(store, rows, order, max(2 * top, _CANDIDATES), joined, known)
    hits = _judged(candidates, calibration, searched)
    if not rerank:
        hits = sorted(hits, key=lambda hit: (not hit.is_query, -hit.similarity))
    return SearchAnswer(tuple(hits[:top]), calibration, searched, tuple(queries))


def _most_similar(store: Store, query: np.ndarray, where: Filter, top: int, with_embeddings: bool) -> pa.Table:
    """Most similar detections, so many that they make enough appearances or that there are no more."""
    limit = max(RERANKED, 20 * top)
    while True:
        (rows,) = store.search(query[None], where=where, limit=limit, with_embeddings=with_embeddings)
        if len(rows) < limit or limit >= _MOST_ROWS or len(rows["tracklet"].unique()) >= top:
            return rows
        limit *= 4


def _without(rows: pa.Table, asked: np.ndarray, negatives: np.ndarray) -> pa.Table:
    import pyarrow as pa

    vectors = embeddings_of(rows)
    right = (vectors @ asked.T).max(axis=1, initial=-2)
    wrong = (vectors @ _unit(negatives).T).max(axis=1, initial=-2)
    return rows.filter(pa.array(right >= wrong))


def _reranked(rows: pa.Table, query: np.ndarray) -> list[int]:
    """Order of the rows: the first ones by k-reciprocal re-ranking, the others as they were."""
    from ..evaluation.rescoring import Reranking, k_reciprocal_distance

    best = min(len(rows), RERANKED)
    features = np.concatenate([_unit(query[None]), embeddings_of(rows.slice(0, best))])
    distance = k_reciprocal_distance(features, Reranking())
    return [*np.argsort(distance, kind="stable").tolist(), *range(best, len(rows))]


@dataclass(frozen=True)
class _Candidate:
    """An appearance before it is judged: the row of its most similar detection, and what it is as a whole."""

    row: dict[str, Any]
    whole: _Whole
    similarity: float
    own: bool


def _candidates(
    store: Store, rows: pa.Table, order: Sequence[int] | None, most: int, query: np.ndarray, own: set[str]
) -> list[_Candidate]:
    """Tracklets in the order of their first row, or of the one that `order` puts first."""
    import pyarrow as pa

    names = rows["tracklet"].to_pylist()
    mine = {name for name, identity in zip(names, rows["id"].to_pylist(), strict=True) if identity in own}
    chosen: dict[str, int] = {}
    for place in range(len(rows)) if order is None else order:
        if names[place] not in chosen and len(chosen) == most:
            continue
        # Rows lie by falling similarity, whatever the order in which re-ranking takes them.
        chosen[names[place]] = min(place, chosen.get(names[place], place))
    wholes = _wholes(store, tuple(chosen))
    best = rows.take(pa.array(list(chosen.values()), pa.int64())).drop_columns(
        [name for name in ("embedding",) if name in rows.column_names]
    ).to_pylist()  # fmt: skip
    direction = _unit(query[None])[0]
    candidates = []
    for row in best:
        whole = wholes.get(row["tracklet"]) or _Whole(row["time"], row["time"], row["offset"], row["offset"])
        similarity = row["similarity"] if whole.vector is None else float(whole.vector @ direction)
        candidates.append(_Candidate(row, whole, similarity, row["tracklet"] in mine))
    return candidates


def _judged(candidates: Sequence[_Candidate], calibration: Calibration, searched: int) -> list[Appearance]:
    others = np.array([candidate.similarity for candidate in candidates if not candidate.own])
    rates = iter(calibration.false_match_rates(others, searched).tolist())
    return [_appearance(candidate, 0.0 if candidate.own else next(rates)) for candidate in candidates]


def _appearance(candidate: _Candidate, rate: float) -> Appearance:
    row, whole = candidate.row, candidate.whole
    return Appearance(
        camera=row["camera"],
        source=row["source"],
        tracklet=row["tracklet"],
        start=whole.start,
        end=whole.end,
        start_offset=whole.start_offset,
        end_offset=whole.end_offset,
        similarity=candidate.similarity,
        verdict=verdict_of(rate),
        false_match_rate=rate,
        best=DetectionRef(
            row["id"], row["frame"], row["offset"], _box([row[c] for c in ("x0", "y0", "x1", "y1")]), row["score"]
        ),
        detections=max(len(whole.ids), 1),
        is_query=candidate.own,
    )


@dataclass
class _Whole:
    """What a tracklet is as a whole; the vector is None where its detections were deleted meanwhile."""

    start: datetime | None
    end: datetime | None
    start_offset: float
    end_offset: float
    ids: list[str] = field(default_factory=list)
    vector: np.ndarray | None = None

    def add(self, identity: str, time: datetime | None, offset: float) -> None:
        self.ids.append(identity)
        if time is not None:
            self.start = time if self.start is None else min(self.start, time)
            self.end = time if self.end is None else max(self.end, time)
        self.start_offset, self.end_offset = min(self.start_offset, offset), max(self.end_offset, offset)


def _wholes(store: Store, tracklets: tuple[str, ...]) -> dict[str, _Whole]:
    """Tracklets with their extents and vectors; of a long one, detections spread evenly over it make the vector."""
    wholes: dict[str, _Whole] = {}
    if not tracklets:
        return wholes
    for batch in store.scan(Filter(tracklets=tracklets), ["id", "tracklet", "time", "offset"]):
        for row in batch.to_pylist():
            time, offset = row["time"], row["offset"]
            whole = wholes.setdefault(row["tracklet"], _Whole(time, time, offset, offset))
            whole.add(row["id"], time, offset)
    looked_at = {name: _spread(sorted(whole.ids), _LOOKS) for name, whole in wholes.items()}
    vectors: dict[str, list[np.ndarray]] = {}
    ids = [identity for chosen in looked_at.values() for identity in chosen]
    for start in range(0, len(ids), _IDS_AT_ONCE):
        where = Filter(ids=tuple(ids[start : start + _IDS_AT_ONCE]))
        for batch in store.scan(where, ["tracklet", "embedding"]):
            for name, vector in zip(batch["tracklet"].to_pylist(), embeddings_of(batch), strict=True):
                vectors.setdefault(name, []).append(vector)
    for name, found in vectors.items():
        wholes[name].vector = appearance_vector(np.stack(found))
    return wholes


def _spread(ids: list[str], most: int) -> list[str]:
    """So many of the ids at most, evenly spread."""
    step = max(len(ids) / most, 1.0)
    return [ids[int(k * step)] for k in range(min(len(ids), most))]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def _box(values: Any) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(value) for value in values)
    return x0, y0, x1, y1
