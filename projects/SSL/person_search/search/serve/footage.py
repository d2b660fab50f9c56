"""Indexed footage by ids: who was detected where, crops, frames and tracks.

Visitors name sources, detections and tracklets by the ids that the store gave them, never by a path. What they get is
read from sources that the store lists, and from nothing else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from ...errors import PersonSearchError
from ..store import Filter, SourceState, Store, source_key, without_password
from .caching import LimitedCache
from .uploads import RequestError, encode_jpeg

Row = Mapping[str, Any]
ReadFrame = Callable[[Row], np.ndarray]

PLACE = ("id", "source", "camera", "time", "offset", "frame", "x0", "y0", "x1", "y1", "width", "height", "score")
COLUMNS = (*PLACE, "tracklet")
_LIST_SECONDS = 3.0  # age at which the list of sources is read anew: an index may be growing
_MAX_TIMELINES = 8
_CROP_MARGIN, _CROP_HEIGHT = 0.08, 400
_FRAME_SIDE = 1600
_DECODERS = 2  # frames read at once


@dataclass(frozen=True)
class Timeline:
    """Frames of a source on which somebody was detected, in their order.

    Attributes:
        frames: int64 (F,), numbers of the frames.
        offsets: float64 (F,), seconds.
        ids: ids of the detections of each frame.
    """

    frames: np.ndarray
    offsets: np.ndarray
    ids: list[list[str]]


class Footage:
    """Sources of a store and what is shown of them.

    Args:
        store: store of detections.
        read_frame: reads the frame of a row, uint8 (H, W, 3) RGB, upright.
        cache_bytes: memory for crops and frames.
    """

    def __init__(self, store: Store, read_frame: ReadFrame, cache_bytes: int) -> None:
        self._store, self._read_frame = store, read_frame
        self._timelines: LimitedCache[tuple[float, Timeline]] = LimitedCache(_MAX_TIMELINES)
        self._pictures: LimitedCache[bytes] = LimitedCache(cache_bytes, len)
        self._decoders = threading.BoundedSemaphore(_DECODERS)
        self._listed: tuple[float, dict[str, SourceState]] = (-np.inf, {})

    def sources(self) -> dict[str, SourceState]:
        """All sources by their ids."""
        read, sources = self._listed
        if time.monotonic() - read > _LIST_SECONDS:
            sources = {source_key(state.source, state.camera): state for state in self._store.sources()}
            self._listed = (time.monotonic(), sources)
        return sources

    def source(self, source_id: str) -> SourceState:
        """The source of an id.

        Raises:
            RequestError: the store lists none.
        """
        state = self.sources().get(source_id)
        if state is None:
            raise RequestError("this source is not in the store", 404)
        return state

    def source_of(self, row: Row) -> SourceState:
        """The source of a detection; raises RequestError where the store lists none."""
        return self.source(source_key(row["source"], row["camera"]))

    def rows(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        """Detections in the order of their ids.

        Raises:
            RequestError: one is not in the store.
        """
        # Asked of the store every time: another program may have had it forget somebody.
        known = {row["id"]: row for row in self._scan(Filter(ids=tuple(dict.fromkeys(ids))))} if ids else {}
        lost = [name for name in ids if name not in known]
        if lost:
            raise RequestError(f"detection {lost[0]} is not in the store (any more)", 404)
        return [known[name] for name in ids]

    def embeddings(self, ids: Sequence[str]) -> np.ndarray:
        """Embeddings (N, d) of detections in the order of their ids, float32; raises as `rows`."""
        found: dict[str, np.ndarray] = {}
        if ids:
            for batch in self._store.scan(Filter(ids=tuple(dict.fromkeys(ids))), columns=["id", "embedding"]):
                for name, vector in zip(batch["id"].to_pylist(), batch["embedding"].to_pylist(), strict=True):
                    found[name] = np.asarray(vector, dtype=np.float32)
        lost = [name for name in ids if name not in found]
        if lost:
            raise RequestError(f"detection {lost[0]} is not in the store (any more)", 404)
        return np.stack([found[name] for name in ids]) if ids else np.empty((0, self._store.info.dimension), np.float32)

    def track(self, tracklet: str) -> list[dict[str, Any]]:
        """Detections of a tracklet in the order of time; raises RequestError where there are none."""
        rows = sorted(self._scan(Filter(tracklets=(tracklet,))), key=lambda row: (row["frame"], row["id"]))
        if not rows:
            raise RequestError("this appearance is not in the store (any more)", 404)
        return rows

    def timeline(self, source_id: str) -> Timeline:
        """Frames of a source with persons; raises RequestError where there are none."""
        known = self._timelines.get(source_id)
        if known is None or time.monotonic() - known[0] > _LIST_SECONDS:
            known = (time.monotonic(), self._read_timeline(self.source(source_id)))
            self._timelines.put(source_id, known)
        return known[1]

    def persons(self, source_id: str, index: int) -> list[dict[str, Any]]:
        """Detections of a source's frame by its position among those with persons, the nearest that there is."""
        timeline = self.timeline(source_id)
        return self.rows(timeline.ids[min(max(index, 0), len(timeline.ids) - 1)])

    def index_at(self, source_id: str, offset: float) -> int:
        """Position of the frame nearest to an offset in seconds, among those with persons."""
        return int(np.abs(self.timeline(source_id).offsets - offset).argmin())

    def index_of(self, source_id: str, frame: int) -> int:
        """Position of a frame by its number, or of the nearest, among those with persons."""
        return int(np.abs(self.timeline(source_id).frames - frame).argmin())

    def crop(self, detection: str) -> bytes:
        """JPEG of a person with a little of the surroundings, at most 400 pixels high."""
        (row,) = self.rows([detection])
        return self._picture(("crop", detection), row, lambda image: crop_pixels(image, row))

    def frame(self, detection: str) -> bytes:
        """JPEG of the whole frame of a detection, at most 1600 pixels a side."""
        (row,) = self.rows([detection])
        key = ("frame", row["source"], row["frame"])
        return self._picture(key, row, lambda image: shrink(image, _FRAME_SIDE / max(image.shape[:2])))

    def clear(self) -> None:
        """Drops everything that was kept, so that nothing of what is forgotten is shown again."""
        self._timelines.clear()
        self._pictures.clear()
        self._listed = (-np.inf, {})

    def _picture(self, key: tuple[Any, ...], row: Row, cut: Callable[[np.ndarray], np.ndarray]) -> bytes:
        kept = self._pictures.get(key)
        if kept is None:
            state = self.source_of(row)
            with self._decoders:
                try:
                    image = self._read_frame(row)
                except PersonSearchError as error:
                    raise RequestError(without_path(error, state.source), 404) from error
            kept = encode_jpeg(cut(image), quality=85)
            self._pictures.put(key, kept)
        return kept

    def _read_timeline(self, state: SourceState) -> Timeline:
        columns = ["id", "frame", "offset"]
        frames: dict[int, tuple[float, list[str]]] = {}
        for batch in self._store.scan(Filter(sources=(state.source,), cameras=(state.camera,)), columns=columns):
            for name, frame, offset in zip(*(batch[column].to_pylist() for column in columns), strict=True):
                frames.setdefault(frame, (offset, []))[1].append(name)
        if not frames:
            raise RequestError(f"nobody is indexed in {source_name(state)}", 404)
        order = sorted(frames)
        return Timeline(
            np.array(order, dtype=np.int64),
            np.array([frames[number][0] for number in order]),
            [sorted(frames[number][1]) for number in order],
        )

    def _scan(self, where: Filter) -> list[dict[str, Any]]:
        return [row for batch in self._store.scan(where, columns=list(COLUMNS)) for row in batch.to_pylist()]


def box_of(row: Row) -> tuple[float, float, float, float]:
    """Corners of a detection in pixels."""
    return (float(row["x0"]), float(row["y0"]), float(row["x1"]), float(row["y1"]))


def crop_pixels(image: np.ndarray, row: Row) -> np.ndarray:
    """Person of a row with a margin, cut out of the frame and at most 400 pixels high."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = box_of(row)
    margin = _CROP_MARGIN * (y1 - y0)
    left, top = (int(np.clip(value - margin, 0, side - 1)) for value, side in ((x0, width), (y0, height)))
    right = int(np.clip(np.ceil(x1 + margin), left + 1, width))
    bottom = int(np.clip(np.ceil(y1 + margin), top + 1, height))
    return shrink(image[top:bottom, left:right], _CROP_HEIGHT / (bottom - top))


def shrink(image: np.ndarray, scale: float) -> np.ndarray:
    """Picture made smaller by a factor; one of 1 or more leaves it as it is."""
    if scale >= 1:
        return np.ascontiguousarray(image)
    import cv2

    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def source_name(state: SourceState) -> str:
    """Name of a source without the folders that it lies in, or its address without what might be secret."""
    if "://" not in state.source:
        return PurePath(state.source).name
    parts = urlsplit(without_password(state.source))
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"


def without_path(error: BaseException, source: str) -> str:
    """Message of an error with the name of a file instead of its path, on one line."""
    return " ".join(str(error).replace(source, PurePath(source).name).split())
