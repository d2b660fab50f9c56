"""A source while it is indexed: its rows that wait to be written, its tracklets, and how far it has come."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .sources import Source, time_of
from .store import Filter, SourceState, detection_id, detections_schema, source_key, tracklet_id
from .tracklets import TrackletNumbers

if TYPE_CHECKING:
    import pyarrow as pa

    from .searcher import Detections
    from .store import Store
    from .video import Frame

_UNKNOWN_RATE = 25.0
_JPEG_QUALITY = 90


class IndexedSource:
    """A source of a run of indexing.

    Attributes:
        source: What it is.
        state: How far its detections are written or wait to be.
        pending: Rows that wait.
        replayed: Whether the detections of an earlier run have been shown to the tracker.
        damaged: Parts that could not be decoded.
    """

    def __init__(self, source: Source, state: SourceState, dimension: int) -> None:
        """
        Args:
            source: What it is.
            state: From which it goes on.
            dimension: Length of an embedding.
        """
        self.source, self.state = source, state
        self.pending, self.damaged = 0, 0
        self.replayed = state.kind == "photo"
        self._schema = detections_schema(dimension)
        self._columns: dict[str, list[Any]] = {name: [] for name in self._schema.names}
        self._tracklets: TrackletNumbers | None = None

    @property
    def short_name(self) -> str:
        """Last part of its name."""
        return self.source.name.rstrip("/").rpartition("/")[2]

    def expected(self, every: Fraction | None) -> int:
        """About how many frames are left to be looked at."""
        if self.state.kind == "photo":
            return 1
        step = (
            1 / (self.state.fps or _UNKNOWN_RATE) if every is None else max(float(every), 1 / (self.state.fps or 1e9))
        )
        done = self.state.seconds_done + step if self.state.frames_done else 0.0
        return max(math.ceil((self.state.duration - done) / step), 0)

    def resume_from(self) -> tuple[int, float] | None:
        """Number and offset of the last frame that was looked at, None at the start."""
        return (self.state.frames_done - 1, self.state.seconds_done) if self.state.frames_done else None

    def replay(self, store: Store, every: Fraction | None) -> None:
        """Shows the tracker what earlier runs have stored, and deletes what lies behind the state.

        An earlier run may have been killed between writing rows and the state that covers them. They are found again,
        but not to the last one where a GPU rounds otherwise.
        """
        self.replayed = True
        spacing = 1 / (self.state.fps or _UNKNOWN_RATE)
        self._tracklets = TrackletNumbers(spacing if every is None else max(float(every), spacing))
        where = Filter(sources=(self.state.source,), cameras=(self.state.camera,))
        frames: dict[int, list[tuple[str, float, list[float], float]]] = {}
        columns = ["id", "frame", "offset", "x0", "y0", "x1", "y1", "score"]
        for batch in store.scan(where, columns):
            for row in batch.to_pylist():
                box = [row[name] for name in ("x0", "y0", "x1", "y1")]
                frames.setdefault(row["frame"], []).append((row["id"], row["offset"], box, row["score"]))
        behind = [row[0] for frame, rows in frames.items() if frame >= self.state.frames_done for row in rows]
        if behind:
            store.delete(Filter(ids=tuple(behind)))
        for frame in sorted(frame for frame in frames if frame < self.state.frames_done):
            rows = sorted(frames[frame])
            boxes = np.array([row[2] for row in rows], np.float32)
            self._tracklets.update(rows[0][1], boxes, np.array([row[3] for row in rows], np.float32))

    def add(self, frame: Frame, found: Detections, keep: Path | None = None) -> None:
        """Takes the detections of the next frame.

        Args:
            frame: The frame.
            found: Its detections.
            keep: Folder for its picture, if anyone was found.
        """
        number = len(found)
        if self.state.kind == "photo":
            tracklets = np.arange(number)
        else:
            assert self._tracklets is not None
            tracklets = self._tracklets.update(frame.offset, found.boxes, found.scores)
        source, camera = self.state.source, self.state.camera
        time = frame.time or time_of(self.state.start, frame.offset)
        if number:
            height, width = found.image_size
            values: dict[str, list[Any]] = {
                "id": [detection_id(source, camera, frame.number, box) for box in range(number)],
                "source": [source] * number,
                "camera": [camera] * number,
                "time": [time] * number,
                "offset": [frame.offset] * number,
                "frame": [frame.number] * number,
                **{name: found.boxes[:, k].tolist() for k, name in enumerate(("x0", "y0", "x1", "y1"))},
                "width": [width] * number,
                "height": [height] * number,
                "score": found.scores.tolist(),
                "tracklet": [tracklet_id(source, camera, int(n)) for n in tracklets],
                "embedding": list(found.embeddings),
            }
            for name, column in values.items():
                self._columns[name] += column
            self.pending += number
            if keep is not None:
                _keep_picture(keep / source_key(source, camera) / f"{frame.number:010d}.jpg", frame.image)
        start = self.state.start or (frame.time if self.state.kind == "photo" else None)
        self.state = replace(
            self.state, start=start, frames_done=frame.number + 1, seconds_done=frame.offset, error=""
        )  # fmt: skip

    def damage(self) -> str:
        """What is said of parts that could not be decoded, "" where there are none."""
        return f"{self.damaged} parts of the video could not be decoded and were skipped" if self.damaged else ""

    def finish(self, error: str, complete: bool) -> None:
        """Notes that the source has ended, or why it cannot be read on."""
        self.state = replace(self.state, finished=complete, error=error)

    def take(self) -> tuple[pa.Table | None, SourceState]:
        """Rows that wait, as a table (None: none), and the state that they lead to; then nothing waits."""
        import pyarrow as pa

        table = None
        if self.pending:
            arrays = [pa.array(self._columns[f.name], f.type) for f in self._schema if f.name != "embedding"]
            vectors = np.stack(self._columns["embedding"]).astype(np.float32)
            embeddings = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
            table = pa.Table.from_arrays([*arrays, embeddings], schema=self._schema)
        self._columns = {name: [] for name in self._schema.names}
        self.pending = 0
        return table, self.state


def _keep_picture(path: Path, image: np.ndarray) -> None:
    """Writes a picture as JPEG, whole or not at all."""
    import cv2

    from ..io import replacing

    _, data = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    with replacing(path) as temporary:
        temporary.write_bytes(data.tobytes())
