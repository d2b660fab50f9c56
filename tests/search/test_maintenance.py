"""Upkeep of stores: forgetting leaves no byte on disk, old detections go, exports can be read again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lancedb", reason="the extra [search] is not installed")

from person_search.data.mot import read_mot_lines  # noqa: E402
from person_search.search.maintenance import (  # noqa: E402
    apply_retention,
    describe,
    export,
    forget,
    forget_person,
    retention,
    set_retention,
)
from person_search.search.sources import FRAMES_FOLDER  # noqa: E402
from person_search.search.store import (  # noqa: E402
    EVERYTHING,
    Filter,
    SourceState,
    Store,
    StoreError,
    StoreInfo,
    embeddings_of,
    open_store,
)

INFO = StoreInfo("tiny", "ab" * 32, 16)
START = datetime(2026, 3, 1, 8, tzinfo=timezone.utc)


@pytest.fixture
def rows(make_detections: Callable[..., Any]) -> Any:
    return make_detections(0, 400)


@pytest.fixture
def store(tmp_path: Path, rows: Any) -> Iterator[Store]:
    store = open_store(str(tmp_path / "store"), info=INFO, create=True)
    store.upsert(rows)
    yield store
    store.close()


def _files_with(folder: str | Path, vector: np.ndarray) -> list[str]:
    """Files that hold a vector, or half of it where a page ends within."""
    halves = (vector[:8].tobytes(), vector[8:].tobytes())
    files = [file for file in Path(folder).rglob("*") if file.is_file()]
    return [str(file) for file in files if any(half in file.read_bytes() for half in halves)]


def test_forgetting_one_of_many_leaves_no_byte_of_it(store: Store, rows: Any) -> None:
    vectors = embeddings_of(rows)
    store.upsert(rows.slice(0, 100))  # again, so that an older version holds them too
    store.optimize()
    assert _files_with(store.uri, vectors[7]) and _files_with(store.uri, vectors[300])
    assert forget(store, Filter(ids=(rows["id"][7].as_py(), rows["id"][300].as_py()))) == 2
    assert not _files_with(store.uri, vectors[7]) and not _files_with(store.uri, vectors[300])
    assert _files_with(store.uri, vectors[8])
    assert store.count() == 398
    kept = [k for k in range(400) if k not in (7, 300)]
    (found,) = store.search(vectors[8], limit=400)
    assert sorted(found["id"].to_pylist()) == sorted(rows["id"][k].as_py() for k in kept)
    assert store.count(Filter(cameras=("gate",))) == sum(rows["camera"][k].as_py() == "gate" for k in kept)


def test_forgetting_empties_the_index_as_well(store: Store, rows: Any) -> None:
    store.exact_below = 100
    store.optimize()
    vector = embeddings_of(rows)[42]
    assert any("_indices" in file for file in _files_with(store.uri, vector))
    assert forget(store, Filter(ids=(rows["id"][42].as_py(),))) == 1
    assert not _files_with(store.uri, vector)
    (found,) = store.search(vector, limit=5)
    assert len(found) == 5 and rows["id"][42].as_py() not in found["id"].to_pylist()


def test_what_a_killed_writer_left_is_forgotten_too(store: Store, rows: Any, tmp_path: Path) -> None:
    vector = embeddings_of(rows)[5]
    (data,) = Path(store.uri, "detections.lance", "data").glob("*.lance")
    left = data.with_name("0" * 50 + ".lance")
    left.write_bytes(data.read_bytes())  # written, never committed
    forget(store, Filter(ids=(rows["id"][5].as_py(),)))
    assert not left.exists() and not _files_with(store.uri, vector)


def test_forgetting_a_person_takes_all_of_the_tracklets_and_the_kept_pictures(
    store: Store, rows: Any, tmp_path: Path
) -> None:
    tracklet = rows["tracklet"][14].as_py()
    of_it = [k for k, name in enumerate(rows["tracklet"].to_pylist()) if name == tracklet]
    others = [k for k in range(400) if k not in of_it]
    pictures = []
    for k in (of_it[0], others[0]):
        source, frame, _ = rows["id"][k].as_py().split(":")
        pictures.append(tmp_path / "frames" / source / f"{frame}.jpg")
        pictures[-1].parent.mkdir(parents=True, exist_ok=True)
        pictures[-1].write_bytes(b"a picture")
    store.set_setting(FRAMES_FOLDER, str(tmp_path / "frames"))
    with pytest.raises(StoreError, match="has no tracklet nobody"):
        forget_person(store, [tracklet, "nobody"])
    assert store.count() == 400 and pictures[0].exists()
    assert forget_person(store, [tracklet]) == len(of_it) > 1
    assert not pictures[0].exists() and pictures[1].exists()
    assert store.count(Filter(tracklets=(tracklet,))) == 0 and store.count() == len(others)


def test_forgetting_everybody_by_mistake_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="empty filter would forget everybody"):
        forget(store, EVERYTHING)
    with pytest.raises(StoreError, match="no tracklet is named"):
        forget_person(store, [])
    assert store.count() == 400


def test_old_detections_go_and_the_store_remembers_for_how_long_they_stay(store: Store, rows: Any) -> None:
    assert retention(store) is None and apply_retention(store) == 0
    now = START + timedelta(days=10, seconds=200)
    seconds = [None if k % 5 == 0 else k for k in range(400)]
    old = [k for k, second in enumerate(seconds) if second is not None and second < 200]
    assert apply_retention(store, 10, now=now) == len(old)
    assert open_store(store.uri).setting("retention_days") == "10" and retention(store) == 10
    assert store.count(Filter(undated=True)) == 80  # no source has a state yet, so their age is unknown
    assert not _files_with(store.uri, embeddings_of(rows)[old[3]])
    assert apply_retention(store, now=now) == 0
    set_retention(store, None)
    assert retention(store) is None
    for days in (0, -1, 1.5, True):
        with pytest.raises(StoreError, match="expected a whole number"):
            set_retention(store, days)


def test_detections_of_unknown_time_are_as_old_as_the_state_of_their_source(store: Store, rows: Any) -> None:
    store.set_source(SourceState("/footage/a.mp4", "gate", "photo", "", None, 1, 0.0, True))
    state = Filter(undated=True, sources=("/footage/a.mp4",), cameras=("gate",))
    expected = store.count(state)
    assert 0 < expected < store.count(Filter(undated=True))
    set_retention(store, 30)
    today = datetime.now(timezone.utc)
    dated = store.count(Filter(until=today - timedelta(days=30)))
    assert apply_retention(store, now=today + timedelta(days=29)) == dated == 320
    assert apply_retention(store, now=today + timedelta(days=31)) == expected
    assert store.count(state) == 0 and store.count(Filter(undated=True)) == 80 - expected


def test_exports_hold_what_was_asked_for(store: Store, rows: Any, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    where = Filter(cameras=("gate",))
    wanted = rows.filter(np.array([camera == "gate" for camera in rows["camera"].to_pylist()])).sort_by("id")
    assert export(store, tmp_path / "new" / "some.parquet", where) == len(wanted)
    table = pq.read_table(tmp_path / "new" / "some.parquet")
    assert table.sort_by("id").cast(wanted.schema).equals(wanted)
    assert export(store, tmp_path / "some.jsonl", where) == len(wanted)
    lines = [json.loads(line) for line in (tmp_path / "some.jsonl").read_text(encoding="utf-8").splitlines()]
    lines.sort(key=lambda line: line["id"])
    assert [line["id"] for line in lines] == wanted["id"].to_pylist()
    first = wanted.drop_columns(["embedding"]).to_pylist()[0]
    assert lines[0] == first | {"time": first["time"] and first["time"].isoformat()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "some.jsonl", "store"]  # nothing half written


def test_an_export_for_mot_is_read_by_the_datasets_reader(store: Store, rows: Any, tmp_path: Path) -> None:
    one = Filter(cameras=("gate",), sources=("/footage/b.mp4",))
    with pytest.raises(StoreError, match="a MOT file holds one source, found 2"):
        export(store, tmp_path / "all.txt", Filter(cameras=("gate",)))
    assert not (tmp_path / "all.txt").exists()
    written = export(store, tmp_path / "one.txt", one)
    found = list(read_mot_lines(tmp_path / "one.txt"))
    expected = [row for row in rows.to_pylist() if (row["camera"], row["source"]) == ("gate", "/footage/b.mp4")]
    assert written == len(found) == len(expected)
    for row in expected:
        (line,) = (line for line in found if line.frame == row["frame"] + 1)
        np.testing.assert_allclose(line.bbox, [row[name] for name in ("x0", "y0", "x1", "y1")], atol=0.01)
        assert line.mark == pytest.approx(row["score"], abs=0.01)
    assert {line.identity for line in found} == set(range(1, len({row["tracklet"] for row in expected}) + 1))
    assert export(store, tmp_path / "folder") == 400
    assert len(list((tmp_path / "folder").glob("*.txt"))) == 6


def test_exports_that_cannot_be_written_are_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="expected a file named"):
        export(store, tmp_path / "some.csv")
    with pytest.raises(StoreError, match="no detection to export"):
        export(store, tmp_path / "some.jsonl", Filter(cameras=("nowhere",)))
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


def test_description_counts_what_is_there(store: Store, rows: Any) -> None:
    store.set_source(SourceState("/footage/a.mp4", "gate", "video", "", None, 1, 0.0, True))
    set_retention(store, 7)
    summary = describe(store)
    assert (summary.uri, summary.info, summary.detections, summary.undated) == (store.uri, INFO, 400, 80)
    assert sum(summary.cameras.values()) == 400 and set(summary.cameras) == set(rows["camera"].to_pylist())
    assert summary.tracklets == len(set(rows["tracklet"].to_pylist()))
    assert (summary.first, summary.last) == (START + timedelta(seconds=1), START + timedelta(seconds=399))
    assert [state.source for state in summary.sources] == ["/footage/a.mp4"] and summary.retention_days == 7
    assert summary.bytes is not None and summary.bytes > embeddings_of(rows).nbytes
