"""Searches: from what a visitor asks to ranked appearances in the words of the API."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..query import Appearance as FoundAppearance
from ..query import SearchAnswer, find_person
from ..searcher import PersonSearcher
from ..store import Filter, SourceState, Store, source_key
from . import schemas
from .caching import LimitedCache
from .footage import Footage, box_of, source_name
from .uploads import RequestError, Shelf, ShelvedPicture

_MIN_BOX_SIDE = 4.0
_MAX_ANSWERS = 50
_CALIBRATION_DRIFT = 0.1  # share of its detections that a store may gain or lose before it is calibrated anew


@dataclass(frozen=True)
class _Query:
    embedding: np.ndarray
    used: schemas.QueryUsed
    tracklet: str | None


class Answers:
    """Searches in a store; safe to use from several threads.

    Args:
        store: store of detections.
        footage: its sources.
        searcher: model that made the store, None where only indexed persons can be searched for.
        shelf: uploaded pictures.
    """

    def __init__(self, store: Store, footage: Footage, searcher: PersonSearcher | None, shelf: Shelf) -> None:
        self._store, self._footage, self._searcher, self._shelf = store, footage, searcher, shelf
        self._model = threading.Lock()
        self._answers: LimitedCache[schemas.Answer] = LimitedCache(_MAX_ANSWERS)
        self._calibration: tuple[int, Any] | None = None

    @property
    def can_embed(self) -> bool:
        """Whether there is a model for pictures that are not indexed."""
        return self._searcher is not None

    def add_picture(self, name: str, image: np.ndarray) -> ShelvedPicture:
        """Puts a picture on the shelf, uint8 (H, W, 3) RGB, with everybody who is detected there."""
        searcher = self._need_searcher()
        with self._model:
            found = searcher.detect(image)
        return self._shelf.add(name, image, found.boxes, found.scores, found.embeddings)

    def search(self, request: schemas.SearchRequest) -> schemas.Answer:
        """Appearances of the person of the queries.

        Raises:
            RequestError: a query, camera or mark is not known, or a box does not fit.
        """
        started = time.perf_counter()
        where = self._filter(request)
        queries = [self._query(query) for query in request.queries]
        right, wrong = (self._footage.embeddings(names) for names in (request.right, request.wrong))
        embeddings = np.concatenate([np.stack([query.embedding for query in queries]), right])
        searched = self._store.count(where)
        found = self._find(embeddings, where, request, wrong if len(wrong) else None)
        own = {query.tracklet for query in queries} - {None}
        marks: dict[str, schemas.Mark] = dict.fromkeys(request.right, "right")
        marks |= dict.fromkeys(request.wrong, "wrong")
        appearances = self._appearances(found, own, self._marked_tracklets(marks))
        answer = schemas.Answer(
            id=secrets.token_hex(12),
            found=any(map(_counts_as_found, appearances)),
            statement=_statement(appearances, searched),
            appearances=appearances,
            queries=[query.used for query in queries],
            searched=searched,
            seconds=round(time.perf_counter() - started, 3),
        )
        self._answers.put(answer.id, answer)
        return answer

    def answer(self, answer_id: str) -> schemas.Answer:
        """An answer given before; raises RequestError where it is no longer kept."""
        answer = self._answers.get(answer_id)
        if answer is None:
            raise RequestError("this answer is no longer kept; search again", 404)
        return answer

    def clear(self) -> None:
        """Drops answers and calibration; query pictures stay, they are the visitor's."""
        self._answers.clear()
        self._calibration = None

    def _find(
        self, embeddings: np.ndarray, where: Filter, request: schemas.SearchRequest, wrong: np.ndarray | None
    ) -> SearchAnswer:
        """The search itself; the calibration of the whole store is made once, and again when that has changed much."""
        rows = self._store.count()
        known = self._calibration
        if known is not None and abs(rows - known[0]) > _CALIBRATION_DRIFT * known[0]:
            known = None
        own = [query.detection for query in request.queries if isinstance(query, schemas.DetectionQuery)]
        answer = find_person(
            self._store,
            embeddings,
            where=where,
            top=request.top,
            rerank=request.rerank,
            calibration=known[1] if known is not None else None,
            negatives=wrong,
            own=[*own, *request.right],
        )
        self._calibration = known or (rows, answer.calibration)
        return answer

    def _filter(self, request: schemas.SearchRequest) -> Filter:
        known = {state.camera for state in self._footage.sources().values()}
        for camera in request.cameras:
            if camera not in known:
                raise RequestError(f"cameras: {camera!r} is not a camera of this store")
        if request.since is not None and request.until is not None and request.since >= request.until:
            raise RequestError("until: has to be later than since")
        return Filter(cameras=tuple(request.cameras), since=request.since, until=request.until)

    def _query(self, query: schemas.PictureQuery | schemas.DetectionQuery) -> _Query:
        if isinstance(query, schemas.DetectionQuery):
            (row,) = self._footage.rows([query.detection])
            used = schemas.QueryUsed(picture=None, detection=query.detection, box=box_of(row))
            return _Query(self._footage.embeddings([query.detection])[0], used, row["tracklet"])
        picture = self._shelf.get(query.picture)
        box, embedding = self._embed(picture, query)
        return _Query(embedding, schemas.QueryUsed(picture=picture.id, detection=None, box=box), None)

    def _embed(self, picture: ShelvedPicture, query: schemas.PictureQuery) -> tuple[schemas.Box, np.ndarray]:
        if query.box is not None:
            box = _inside(query.box, picture)
            if box not in picture.drawn:
                searcher = self._need_searcher()
                with self._model:
                    picture.drawn[box] = searcher.embed(picture.image, np.array([box], dtype=np.float32))[0]
            return box, picture.drawn[box]
        person = query.person
        if person is None:
            if len(picture.boxes) != 1:
                count = len(picture.boxes) or "no"
                raise RequestError(f"{count} persons were detected in {picture.name}: give `person` or draw a `box`")
            person = 0
        if person >= len(picture.boxes):
            raise RequestError(f"person: {picture.name} has {len(picture.boxes)} detected persons, counted from 0")
        return _corners(picture.boxes[person]), picture.embeddings[person]

    def _need_searcher(self) -> PersonSearcher:
        if self._searcher is None:
            raise RequestError("the server runs without weights: pick a person from the footage, or add --weights", 409)
        return self._searcher

    def _marked_tracklets(self, marks: Mapping[str, schemas.Mark]) -> dict[str, schemas.Mark]:
        rows = self._footage.rows(list(marks))
        return {row["tracklet"]: marks[row["id"]] for row in rows}

    def _appearances(
        self, found: SearchAnswer, own: set[Any], marks: Mapping[str, schemas.Mark]
    ) -> list[schemas.Appearance]:
        rows = self._footage.rows([appearance.best.id for appearance in found.appearances])
        return [
            _appearance(appearance, row, self._footage.source_of(row), own, marks)
            for appearance, row in zip(found.appearances, rows, strict=True)
        ]


def source_message(state: SourceState) -> schemas.Source:
    """A source in the words of the API: its path stays here."""
    from .footage import without_path

    return schemas.Source(
        id=source_key(state.source, state.camera),
        name=source_name(state),
        camera=state.camera,
        kind=state.kind,
        start=state.start,
        duration=state.duration,
        finished=state.finished,
        error=without_path(RuntimeError(state.error), state.source),
    )


def _appearance(
    found: FoundAppearance, row: Mapping[str, Any], state: SourceState, own: set[Any], marks: Mapping[str, schemas.Mark]
) -> schemas.Appearance:
    best = schemas.Best(
        id=row["id"],
        frame=row["frame"],
        offset=row["offset"],
        box=box_of(row),
        score=row["score"],
        width=row["width"],
        height=row["height"],
    )
    return schemas.Appearance(
        tracklet=found.tracklet,
        camera=found.camera,
        source=source_message(state),
        start=found.start,
        end=found.end,
        start_offset=found.start_offset,
        end_offset=found.end_offset,
        similarity=float(found.similarity),
        verdict=found.verdict,
        false_match_rate=None if np.isnan(found.false_match_rate) else float(found.false_match_rate),
        detections=found.detections,
        best=best,
        mark=marks.get(found.tracklet),
        is_query=found.tracklet in own,
    )


def _counts_as_found(appearance: schemas.Appearance) -> bool:
    return appearance.verdict == "likely" and not appearance.is_query and appearance.mark != "wrong"


def _statement(appearances: list[schemas.Appearance], searched: int) -> str:
    """The answer in a sentence; that somebody is not there is said as plainly as that he is."""
    if not searched:
        return "Nothing was searched: no detection meets these filters."
    likely = list(filter(_counts_as_found, appearances))
    if likely:
        cameras = len({appearance.camera for appearance in likely})
        return f"{_several(len(likely), 'likely appearance')} on {_several(cameras, 'camera')}."
    others = [appearance for appearance in appearances if not appearance.is_query and appearance.mark != "wrong"]
    where = " elsewhere" if any(appearance.is_query for appearance in appearances) else ""
    if not others:
        return f"Not there: this person does not appear{where}."
    best = max(others, key=lambda appearance: appearance.similarity)
    closest = f"The closest has a similarity of {best.similarity:.2f}"
    if best.false_match_rate is None:
        return (
            f"Nobody can be called likely{where}: too few frames of this store hold several persons to tell how alike "
            f"different people look. {closest}."
        )
    return (
        f"Not there: no appearance{where} is likely this person. {closest}; of such results "
        f"{percent(best.false_match_rate)} are expected to be someone else."
    )


def percent(share: float | None) -> str:
    """A share in percent with two leading digits."""
    if share is None:
        return "an unknown share"
    value = 100 * share
    if value >= 10:
        return f"{value:.0f} %"
    return f"{value:.2g} %" if value >= 0.01 else "less than 0.01 %"


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _corners(box: np.ndarray) -> schemas.Box:
    x0, y0, x1, y1 = map(float, box)
    return x0, y0, x1, y1


def _inside(box: schemas.Box, picture: ShelvedPicture) -> schemas.Box:
    """The part of a box inside a picture.

    Raises:
        RequestError: it is not finite, empty, or smaller than 4 pixels.
    """
    height, width = picture.image.shape[:2]
    if not np.isfinite(box).all():
        raise RequestError("box: holds a number that is not finite")
    x0, x1 = (float(np.clip(value, 0, width)) for value in (box[0], box[2]))
    y0, y1 = (float(np.clip(value, 0, height)) for value in (box[1], box[3]))
    if x1 - x0 < _MIN_BOX_SIDE or y1 - y0 < _MIN_BOX_SIDE:
        raise RequestError(
            f"box: x0, y0, x1, y1 = {', '.join(f'{value:g}' for value in box)} leave less than {_MIN_BOX_SIDE:g} "
            f"pixels a side inside the picture of {width} x {height} pixels"
        )
    return x0, y0, x1, y1
