"""Indexing: sources are decoded, searched for persons and written to a store, all three at once.

Threads decode into a queue, the calling thread runs the network, another one writes. Rows are written before the state
that covers them and have ids of their own, so that a run that is killed at any moment goes on without double or lost
rows.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from ..errors import PersonSearchError
from .indexed_source import IndexedSource
from .sources import FRAMES_FOLDER, Source, fingerprint, read_photo, video_frames, video_source
from .store import Filter, SourceState
from .streams import LiveFrames
from .video import Frame

if TYPE_CHECKING:
    from .searcher import PersonSearcher
    from .store import Store

logger = logging.getLogger(__name__)

_WRITE_ROWS, _WRITE_SECONDS = 1000, 5.0  # whichever comes first
_OPTIMIZE_WRITES = 50
_WAIT = 0.1  # seconds for the next picture before a batch goes on as it is


@dataclass(frozen=True)
class IndexOptions:
    """How footage is indexed.

    Attributes:
        every: Seconds from one frame of a video or stream that is looked at to the next; None looks at all.
        batch_size: Pictures that go through the network together.
        readers: Threads that decode files. Each live stream has one of its own.
        keep_frames: Folder for the pictures of live streams in which someone was found, None keeps none.
        seconds: Time after which live streams are left, None: never.
        progress: Whether progress is shown.
    """

    every: Fraction | None = Fraction(1, 2)
    batch_size: int = 1
    readers: int = 2
    keep_frames: Path | None = None
    seconds: float | None = None
    progress: bool = True


@dataclass
class IndexReport:
    """What a run of indexing did.

    Attributes:
        frames, detections: Looked at, and found in them.
        sources: Sources that were read.
        already: Sources that had been indexed before and have not changed.
        left_out: Source -> why it could not be read, or not to its end.
        seconds: Wall time.
        decoding, network, writing: Seconds in each of the three. They run at the same time, so that their sum may
            exceed the wall time; decoding is summed over its threads.
    """

    frames: int = 0
    detections: int = 0
    sources: int = 0
    already: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    decoding: float = 0.0
    network: float = 0.0
    writing: float = 0.0


@dataclass(frozen=True)
class _Ended:
    """A source has ended; `error` says why it did so early, `crash` is a fault of the program."""

    error: str = ""
    crash: BaseException | None = None


_Item = tuple[IndexedSource, "Frame | _Ended"]


def index(
    searcher: PersonSearcher,
    store: Store,
    sources: Sequence[Source],
    options: IndexOptions = IndexOptions(),  # noqa: B008  (frozen)
    *,
    stop: threading.Event | None = None,
) -> IndexReport:
    """Indexes sources into a store; what is there already stays, what has changed since is indexed anew.

    Args:
        searcher: The model; the store has to be one of its embeddings.
        store: Where the detections go.
        sources: See `find_sources`.
        options: See `IndexOptions`.
        stop: Ends the run in good order once it is set; a later one goes on where it was. Live streams end only by it
            or by `options.seconds`.

    Returns:
        what was done. A source that cannot be read is named there and left out.

    Raises:
        StoreError: The store cannot be written.
    """
    return _Run(searcher, store, options, stop or threading.Event()).run(sources)


class _Run:
    """One run of indexing."""

    def __init__(self, searcher: PersonSearcher, store: Store, options: IndexOptions, stop: threading.Event) -> None:
        self._searcher, self._store, self._options, self._stop = searcher, store, options, stop
        self._over = threading.Event()  # nothing more is read
        self._report = IndexReport()
        self._queue: queue.Queue[_Item] = queue.Queue(maxsize=max(4, 2 * options.batch_size))
        self._lock = threading.Lock()
        self._touched: set[IndexedSource] = set()
        self._write: Future[None] | None = None
        self._writes, self._written = 0, time.monotonic()

    def run(self, sources: Sequence[Source]) -> IndexReport:
        start = time.monotonic()
        jobs = self._jobs(sources)
        files, streams = [j for j in jobs if j.state.kind != "stream"], [j for j in jobs if j.state.kind == "stream"]
        if streams and self._options.keep_frames is not None:
            self._store.set_setting(FRAMES_FOLDER, str(self._options.keep_frames.absolute()))
        expected = None if streams else sum(job.expected(self._options.every) for job in jobs)
        self._report.sources = len(jobs)
        with (
            ThreadPoolExecutor(1, thread_name_prefix="write") as writer,
            tqdm(total=expected, unit="frame", desc="indexing", disable=not self._options.progress) as progress,
        ):
            threads = self._start_readers(files, streams)
            try:
                self._consume(len(jobs), writer, progress, start)
            finally:
                self._over.set()
                self._drain(threads)
            self._flush(writer)
            self._await_write()
        if self._writes:
            self._timed_write(self._store.optimize)
        self._report.seconds = time.monotonic() - start
        return self._report

    def _jobs(self, sources: Sequence[Source]) -> list[IndexedSource]:
        """The sources that have something left to index, with the state to go on from."""
        known = {(state.source, state.camera): state for state in self._store.sources()}
        jobs, broken = [], []
        for source in sources:
            before = known.get((source.name, source.camera))
            try:
                state = self._state(source, before)
            except PersonSearchError as error:
                self._leave_out(source.name, str(error))
                broken.append(_broken(source, before, str(error)))
                continue
            if state.finished:
                self._report.already += 1
                continue
            jobs.append(IndexedSource(source, state, self._searcher.dimension))
        if broken:
            self._store.set_sources(broken)
        return jobs

    def _state(self, source: Source, before: SourceState | None) -> SourceState:
        """State from which a source goes on; rows of a file that has changed are deleted."""
        digest = fingerprint(source, self._options.every)
        if before is not None and before.fingerprint == digest:
            if before.kind == "stream":
                return replace(before, finished=False, error="")
            return before
        start, fps, duration = source.start, 0.0, 0.0
        if source.kind == "video":
            start, fps, duration = video_source(source)
        elif source.kind == "stream":
            start = datetime.now(timezone.utc)
        if before is not None and before.frames_done:
            logger.info("%s has changed, or is looked at otherwise than before: it is indexed anew", source.name)
            self._store.delete(Filter(sources=(source.name,), cameras=(source.camera,)))
        return SourceState(
            source.name, source.camera, source.kind, digest, start, 0, 0.0, False, "", fps, duration
        )  # fmt: skip

    # ------------------------------------------------------------------ decoding

    def _start_readers(self, files: list[IndexedSource], streams: list[IndexedSource]) -> list[threading.Thread]:
        waiting = iter(files)
        count = min(max(self._options.readers, 1), len(files))
        threads = [threading.Thread(target=self._read_files, args=(waiting,), daemon=True) for _ in range(count)]
        threads += [threading.Thread(target=self._read_stream, args=(job,), daemon=True) for job in streams]
        for thread in threads:
            thread.start()
        return threads

    def _read_files(self, waiting: Iterator[IndexedSource]) -> None:
        while not self._over.is_set():
            with self._lock:
                job = next(waiting, None)
            if job is None:
                return
            self._read(job, self._file_frames(job))

    def _file_frames(self, job: IndexedSource) -> Iterable[Frame]:
        if job.state.kind == "photo":
            yield read_photo(job.source.address)
            return
        frames = video_frames(job.source.address, self._options.every, job.resume_from())
        yield from frames
        job.damaged = frames.damaged

    def _read_stream(self, job: IndexedSource) -> None:
        assert job.state.start is not None
        self._read(job, LiveFrames(job.source.address, job.state.start, self._options.every, self._over), live=True)

    def _read(self, job: IndexedSource, frames: Iterable[Frame], live: bool = False) -> None:
        """Puts the frames of a source and its end into the queue."""
        ended = _Ended()
        try:
            began = time.monotonic()
            for frame in frames:
                with self._lock:
                    self._report.decoding += 0.0 if live else time.monotonic() - began
                if not self._put(job, frame, wait=not live):
                    return
                began = time.monotonic()
        except PersonSearchError as error:
            ended = _Ended(str(error))
        except BaseException as error:  # shown where the run was started
            ended = _Ended(crash=error)
        self._put(job, ended)

    def _put(self, job: IndexedSource, item: Frame | _Ended, wait: bool = True) -> bool:
        """Whether the run goes on. A live frame for which there is no room is dropped: the next one is newer."""
        while not self._over.is_set():
            try:
                self._queue.put((job, item), timeout=_WAIT if wait else 0.001)
                return True
            except queue.Full:
                if not wait:
                    return True
        return False

    def _drain(self, threads: list[threading.Thread]) -> None:
        """Waits for the readers, which may wait for room in the queue."""
        for thread in threads:
            while thread.is_alive():
                thread.join(_WAIT)
                while not self._queue.empty():
                    self._queue.get_nowait()

    # ------------------------------------------------------------------ the network

    def _consume(self, running: int, writer: ThreadPoolExecutor, progress: tqdm, start: float) -> None:
        """Takes frames from the queue until all sources have ended or the run is stopped."""
        batch: list[tuple[IndexedSource, Frame]] = []
        seconds = self._options.seconds
        while running and not self._stop.is_set():
            if seconds is not None and time.monotonic() - start > seconds:
                break
            try:
                job, item = self._queue.get(timeout=_WAIT)
            except queue.Empty:
                self._search(batch, progress)
                self._flush_if_due(writer)
                continue
            if isinstance(item, _Ended):
                self._search(batch, progress)
                self._end(job, item)
                running -= 1
            else:
                batch.append((job, item))
                if len(batch) >= self._options.batch_size:
                    self._search(batch, progress)
            self._flush_if_due(writer)
        self._search(batch, progress)

    def _search(self, batch: list[tuple[IndexedSource, Frame]], progress: tqdm) -> None:
        """Runs the network over a batch and empties it."""
        if not batch:
            return
        began = time.monotonic()
        found = self._searcher.detect_batch([frame.image for _, frame in batch])
        self._report.network += time.monotonic() - began
        for (job, frame), detections in zip(batch, found, strict=True):
            if not job.replayed:
                job.replay(self._store, self._options.every)
            keep = self._options.keep_frames if job.state.kind == "stream" else None
            job.add(frame, detections, keep)
            self._touched.add(job)
            self._report.detections += len(detections)
        self._report.frames += len(batch)
        progress.update(len(batch))
        progress.set_postfix_str(f"{self._report.detections} persons, {batch[-1][0].short_name}", refresh=False)
        batch.clear()

    def _end(self, job: IndexedSource, ended: _Ended) -> None:
        if ended.crash is not None:
            raise ended.crash
        error = ended.error or job.damage()
        if error:
            self._leave_out(job.source.name, error)
        job.finish(error, complete=not ended.error)
        self._touched.add(job)

    def _leave_out(self, name: str, error: str) -> None:
        self._report.left_out[name] = error
        logger.warning("left out: %s", error if name in error else f"{name}: {error}")

    # ------------------------------------------------------------------ writing

    def _flush_if_due(self, writer: ThreadPoolExecutor) -> None:
        rows = sum(job.pending for job in self._touched)
        if rows >= _WRITE_ROWS or (self._touched and time.monotonic() - self._written > _WRITE_SECONDS):
            self._flush(writer)

    def _flush(self, writer: ThreadPoolExecutor) -> None:
        """Hands everything that is pending to the writing thread, which works on one such parcel at a time."""
        if not self._touched:
            return
        self._await_write()
        parts = [job.take() for job in self._touched]
        self._touched.clear()
        self._write, self._written = (
            writer.submit(self._timed_write, lambda: self._store_parts(parts)),
            time.monotonic(),
        )

    def _store_parts(self, parts: list[tuple[object, SourceState]]) -> None:
        import pyarrow as pa

        tables = [table for table, _ in parts if table is not None]
        if tables:
            self._store.upsert(pa.concat_tables(tables))
        self._store.set_sources([state for _, state in parts])
        self._writes += 1
        if self._writes % _OPTIMIZE_WRITES == 0:
            self._store.optimize()

    def _timed_write(self, write: Callable[[], object]) -> None:
        began = time.monotonic()
        write()
        self._report.writing += time.monotonic() - began

    def _await_write(self) -> None:
        if self._write is not None:
            self._write.result()
            self._write = None


def _broken(source: Source, before: SourceState | None, error: str) -> SourceState:
    """State of a source that cannot be opened; what was indexed of it before stays."""
    if before is not None:
        return replace(before, error=error)
    return SourceState(source.name, source.camera, source.kind, "", source.start, 0, 0.0, False, error)
