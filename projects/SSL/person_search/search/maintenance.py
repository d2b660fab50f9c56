"""Upkeep of a store: export, forgetting for good, the time that detections are kept, and what it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..io import replacing
from .store import EVERYTHING, Filter, SourceState, Store, StoreError, StoreInfo

if TYPE_CHECKING:
    import pyarrow as pa

_RETENTION = "retention_days"
_CHUNK = 1000  # values that one condition of a filter names
_T = TypeVar("_T")


@dataclass(frozen=True)
class StoreSummary:
    """What a store holds.

    Attributes:
        uri: The store, without a password.
        info: Model that the embeddings come from.
        detections: Number of detections.
        tracklets: Number of tracklets.
        undated: Number of detections of unknown time.
        cameras: Camera -> number of its detections.
        first: Time of the earliest detection, None if no time is known.
        last: Time of the latest one.
        sources: How far each source has been indexed.
        retention_days: Days that detections are kept, None forever.
        bytes: Size of the folder, None for a server or bucket.
    """

    uri: str
    info: StoreInfo
    detections: int
    tracklets: int
    undated: int
    cameras: dict[str, int]
    first: datetime | None
    last: datetime | None
    sources: tuple[SourceState, ...]
    retention_days: int | None
    bytes: int | None


def describe(store: Store) -> StoreSummary:
    """What a store holds, found by going through its detections once."""
    import pyarrow.compute as pc

    cameras: Counter[str] = Counter()
    tracklets: set[str] = set()
    undated = 0
    ends: list[datetime] = []
    for batch in store.scan(EVERYTHING, ["camera", "tracklet", "time"]):
        counts = pc.value_counts(batch["camera"])
        cameras.update(dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True)))
        tracklets.update(pc.unique(batch["tracklet"]).to_pylist())
        undated += batch["time"].null_count
        span: pa.StructScalar = pc.min_max(batch["time"])
        ends += [end for end in (span["min"].as_py(), span["max"].as_py()) if end is not None]
    folder = Path(store.uri)
    return StoreSummary(
        uri=store.uri,
        info=store.info,
        detections=cameras.total(),
        tracklets=len(tracklets),
        undated=undated,
        cameras=dict(sorted(cameras.items())),
        first=min(ends, default=None),
        last=max(ends, default=None),
        sources=tuple(store.sources()),
        retention_days=retention(store),
        bytes=sum(_size(file) for file in folder.rglob("*")) if "://" not in store.uri and folder.is_dir() else None,
    )


# ---------------------------------------------------------------------- forgetting


def forget(store: Store, where: Filter) -> int:
    """Number of detections deleted for good: their bytes and the kept pictures of their frames go with them.

    A picture goes even if other persons are in it. The states of sources stay, so that nothing is indexed again.

    Raises:
        StoreError: the filter is empty, or the store cannot be written.
    """
    if where.empty:
        raise StoreError(f"{store.uri}: an empty filter would forget everybody; name a camera, a time or a tracklet")
    deleted = _delete(store, where)
    store.purge()
    return deleted


def forget_person(store: Store, tracklets: Sequence[str]) -> int:
    """Number of detections deleted for good with the appearances of a person; see `forget`.

    Raises:
        StoreError: no tracklet is named, or one of them is not in the store: then nothing is deleted.
    """
    if not tracklets:
        raise StoreError(f"{store.uri}: no tracklet is named to be forgotten")
    for tracklet in tracklets:
        if not store.count(Filter(tracklets=(tracklet,))):
            raise StoreError(f"{store.uri} has no tracklet {tracklet}: search prints the names of those it finds")
    deleted = sum(_delete(store, Filter(tracklets=part)) for part in _parts(tracklets))
    store.purge()
    return deleted


def set_retention(store: Store, days: int | None) -> None:
    """Has the store remember for how many days detections are kept, None forever; `apply_retention` deletes.

    Raises:
        StoreError: the number is not a whole one of 1 or more.
    """
    if days is not None and (isinstance(days, bool) or not isinstance(days, int) or days < 1):
        raise StoreError(f"{store.uri}: detections cannot be kept for {days} days, expected a whole number from 1 on")
    store.set_setting(_RETENTION, None if days is None else str(days))


def retention(store: Store) -> int | None:
    """Days for which a store keeps detections, None forever."""
    days = store.setting(_RETENTION)
    return None if days is None else int(days)


def apply_retention(store: Store, days: int | None = None, *, now: datetime | None = None) -> int:
    """Number of detections deleted for good because they are older than the store keeps them.

    A detection of unknown time is as old as the last writing of its source's state.

    Args:
        store: The store.
        days: Days to keep, which the store remembers from now on; None takes what it remembers.
        now: Time from which they count back, with a time zone; the present by default.

    Raises:
        StoreError: the days are no whole number from 1 on, or the store cannot be written.
    """
    if days is not None:
        set_retention(store, days)
    days = retention(store)
    if days is None:
        return 0
    oldest = (now or datetime.now(timezone.utc)) - timedelta(days=days)
    deleted = _delete(store, Filter(until=oldest))
    stale: dict[str, list[str]] = {}
    for (source, camera), written in store.sources_written().items():
        if written < oldest:
            stale.setdefault(camera, []).append(source)
    for camera, sources in stale.items():
        for part in _parts(sources):
            deleted += _delete(store, Filter(cameras=(camera,), sources=part, undated=True))
    if deleted:
        store.purge()
    return deleted


def _delete(store: Store, where: Filter) -> int:
    from .sources import FRAMES_FOLDER

    folder = store.setting(FRAMES_FOLDER)
    if folder:
        # The ids tell the folder and name that a live stream's picture is kept by.
        pictures = {tuple(i.split(":")[:2]) for batch in store.scan(where, ["id"]) for i in batch["id"].to_pylist()}
        for source, frame in pictures:
            (Path(folder) / source / f"{frame}.jpg").unlink(missing_ok=True)
    return store.delete(where)


# ---------------------------------------------------------------------- export


def export(store: Store, path: str | Path, where: Filter = EVERYTHING) -> int:
    """Number of detections written to a file, whose name's end says how.

    `.parquet` has all columns. `.jsonl` has a line a detection without its embedding. `.txt` is MOT's text, with
    frames and tracklets counted from 1, of one source and camera; a path without an end is a folder of one such file
    a source and camera. No file is left half written.

    Raises:
        StoreError: another end, or several sources for one MOT file, or nothing to write.
        DatasetError: the file cannot be written.
    """
    path = Path(path)
    writers = {".parquet": _write_parquet, ".jsonl": _write_lines, ".txt": _write_mot_file, "": _write_mot_folder}
    if path.suffix.lower() not in writers:
        raise StoreError(f"{path}: expected a file named .parquet, .jsonl or .txt (MOT), or a folder for MOT files")
    if not store.count(where):
        raise StoreError(f"{store.uri} has no detection to export that meets the filter")
    return writers[path.suffix.lower()](store, path, where)


def _write_parquet(store: Store, path: Path, where: Filter) -> int:
    import pyarrow.parquet as pq

    from .store import detections_schema

    written = 0
    with replacing(path) as temporary:
        with pq.ParquetWriter(temporary, detections_schema(store.info.dimension)) as writer:
            for batch in store.scan(where):
                writer.write_batch(batch.cast(writer.schema))
                written += batch.num_rows
    return written


def _write_lines(store: Store, path: Path, where: Filter) -> int:
    import json

    from .store import detections_schema

    columns = [name for name in detections_schema(store.info.dimension).names if name != "embedding"]
    written = 0
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for batch in store.scan(where, columns):
            for row in batch.to_pylist():
                row["time"] = row["time"] and row["time"].isoformat()
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            written += batch.num_rows
    return written


def _write_mot_file(store: Store, path: Path, where: Filter) -> int:
    found = _by_source(store, where)
    if len(found) > 1:
        names = ", ".join(f"{source} ({camera})" for source, camera in sorted(found)[:3])
        raise StoreError(f"{path}: a MOT file holds one source, found {len(found)}: {names}; name a folder instead")
    (rows,) = found.values()
    return _write_mot(path, rows)


def _write_mot_folder(store: Store, path: Path, where: Filter) -> int:
    from .store import source_key

    written = 0
    for (source, camera), rows in sorted(_by_source(store, where).items()):
        stem = "".join(c if c.isalnum() or c in "-_." else "_" for c in f"{camera}-{Path(source).stem}")[:100]
        written += _write_mot(path / f"{stem}-{source_key(source, camera)[:8]}.txt", rows)
    return written


def _by_source(store: Store, where: Filter) -> dict[tuple[str, str], list[dict[str, Any]]]:
    columns = ["source", "camera", "frame", "x0", "y0", "x1", "y1", "score", "tracklet"]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for batch in store.scan(where, columns):
        for row in batch.to_pylist():
            found.setdefault((row["source"], row["camera"]), []).append(row)
    return found


def _write_mot(path: Path, rows: list[dict[str, Any]]) -> int:
    numbers = {name: k for k, name in enumerate(sorted({row["tracklet"] for row in rows}), 1)}
    rows.sort(key=lambda row: (row["frame"], numbers[row["tracklet"]]))
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for r in rows:
            box = f"{r['x0']:.2f},{r['y0']:.2f},{r['x1'] - r['x0']:.2f},{r['y1'] - r['y0']:.2f}"
            file.write(f"{r['frame'] + 1},{numbers[r['tracklet']]},{box},{r['score']:.4f},-1,-1,-1\n")
    return len(rows)


def _parts(values: Sequence[_T]) -> Iterator[tuple[_T, ...]]:
    for start in range(0, len(values), _CHUNK):
        yield tuple(values[start : start + _CHUNK])


def _size(file: Path) -> int:
    try:
        return file.stat().st_size if file.is_file() else 0
    except FileNotFoundError:  # another program tidied up meanwhile
        return 0
