"""What every store promises, tried on a folder, on S3 (moto's server) and on a Milvus server."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow", reason="the extra [search] is not installed")
pytest.importorskip("lancedb", reason="the extra [search] is not installed")

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

from ..processes import barrier, start  # noqa: E402

DIMENSION = 16
INFO = StoreInfo("tiny", "ab" * 32, DIMENSION)
START = datetime(2026, 3, 1, 8, tzinfo=timezone.utc)
ROWS = 1500
GATE, YARD = "gate", 'it\'s a "yard"'


# ---------------------------------------------------------------------- one store that the reading tests share


@pytest.fixture(scope="module")
def rows(make_detections: Callable[..., Any]) -> Any:
    return make_detections(0, ROWS)


@pytest.fixture(scope="module")
def filled(new_uri: Callable[[], str], rows: Any) -> Iterator[Store]:
    """A store of all rows, written in three parts, the second of them twice and an index built between."""
    store = open_store(new_uri(), info=INFO, create=True)
    store.upsert(rows.slice(0, 700))
    store.upsert(rows.slice(400, 600))
    store.optimize()
    store.upsert(rows.slice(1000))
    yield store
    store.close()


FILTERS = {
    "nothing": EVERYTHING,
    "camera": Filter(cameras=(GATE,)),
    "quotes": Filter(cameras=(YARD, "Straße\\1")),
    "unknown camera": Filter(cameras=("nowhere",)),
    "since": Filter(since=START + timedelta(seconds=1201)),
    "until": Filter(until=START + timedelta(seconds=301)),
    "span": Filter(since=START + timedelta(seconds=601), until=START + timedelta(seconds=604)),
    "other time zone": Filter(until=(START + timedelta(seconds=301)).astimezone(timezone(timedelta(hours=5)))),
    "source": Filter(sources=("/footage/b.mp4",)),
    "undated": Filter(undated=True),
    "all": Filter(cameras=(GATE, YARD), sources=("/footage/a.mp4",), since=START, until=START + timedelta(seconds=900)),
}


def _meets(row: dict[str, Any], where: Filter) -> bool:
    return (
        (not where.cameras or row["camera"] in where.cameras)
        and (not where.sources or row["source"] in where.sources)
        and (not where.tracklets or row["tracklet"] in where.tracklets)
        and (not where.ids or row["id"] in where.ids)
        and (where.since is None or (row["time"] is not None and row["time"] >= where.since))
        and (where.until is None or (row["time"] is not None and row["time"] < where.until))
        and (not where.undated or row["time"] is None)
    )


def _expected(rows: Any, query: np.ndarray, where: Filter) -> tuple[list[str], np.ndarray]:
    """Ids and similarities of the rows that meet a filter, best first, by looking at every one."""
    ids = rows["id"].to_pylist()
    kept = [i for i, row in enumerate(rows.drop_columns(["embedding"]).to_pylist()) if _meets(row, where)]
    similarity = embeddings_of(rows)[kept] @ query
    order = np.argsort(-similarity, kind="stable")
    return [ids[kept[i]] for i in order], similarity[order]


@pytest.mark.parametrize("name", FILTERS)
def test_search_and_count_are_exact(filled: Store, rows: Any, name: str) -> None:
    where = FILTERS[name]
    query = embeddings_of(rows)[3]
    ids, similarity = _expected(rows, query, where)
    (found,) = filled.search(query, where=where, limit=40)
    assert found["id"].to_pylist() == ids[:40]
    np.testing.assert_allclose(found["similarity"].to_numpy(), similarity[:40], atol=1e-5)
    assert filled.count(where) == len(ids)
    assert sorted(i for batch in filled.scan(where, ["id"]) for i in batch["id"].to_pylist()) == sorted(ids)


def test_filters_by_tracklet_and_id_are_exact(filled: Store, rows: Any) -> None:
    row = rows.slice(77, 1).to_pylist()[0]
    several = tuple(rows["id"].to_pylist()[5:300:7])
    for where in (Filter(tracklets=(row["tracklet"], "none")), Filter(ids=several), Filter(ids=(row["id"],))):
        ids, _ = _expected(rows, np.ones(DIMENSION, np.float32), where)
        assert sorted(i for batch in filled.scan(where, ["id"]) for i in batch["id"].to_pylist()) == sorted(ids)
        assert filled.count(where) == len(ids) > 0


def test_search_gives_what_was_stored_for_several_queries(filled: Store, rows: Any) -> None:
    queries = 3 * embeddings_of(rows)[[10, 1200]]  # of any length
    plain = filled.search(queries, limit=2)
    full = filled.search(queries, limit=2, with_embeddings=True)
    for number, table, with_embeddings in zip((10, 1200), plain, full, strict=True):
        assert table.column_names == [*rows.drop_columns(["embedding"]).column_names, "similarity"]
        expected = rows.slice(number, 1).to_pylist()[0]
        assert with_embeddings.drop_columns(["similarity"]).slice(0, 1).to_pylist()[0] == expected
        expected.pop("embedding")
        assert table.drop_columns(["similarity"]).slice(0, 1).to_pylist()[0] == expected
        assert table.schema.field("time").type == rows.schema.field("time").type
        assert table["similarity"][0].as_py() == pytest.approx(1, abs=1e-5)


def test_scan_streams_all_columns_or_those_asked_for(filled: Store, rows: Any) -> None:
    batches = list(filled.scan())
    assert all(batch["id"].to_pylist() == sorted(batch["id"].to_pylist()) for batch in batches)
    assert pa.Table.from_batches(batches).sort_by("id").equals(rows.sort_by("id"))
    (names,) = {tuple(batch.schema.names) for batch in filled.scan(columns=["frame", "camera"])}
    assert names == ("frame", "camera")
    with pytest.raises(StoreError, match="no column nose"):
        list(filled.scan(columns=["nose"]))


def test_bad_queries_are_refused(filled: Store) -> None:
    for query, message in (
        (np.ones(8), "dimension 16, the query has shape"),
        (np.zeros(DIMENSION), "no direction"),
        (np.full(DIMENSION, np.nan), "no direction"),
    ):
        with pytest.raises(StoreError, match=message):
            filled.search(query)
    with pytest.raises(StoreError, match="0 results"):
        filled.search(np.ones(DIMENSION), limit=0)


def test_bad_rows_are_refused(filled: Store, rows: Any, make_detections: Callable[..., Any]) -> None:
    one = make_detections(ROWS, ROWS + 1)
    place = one.column_names.index("embedding")
    long = pa.FixedSizeListArray.from_arrays(pa.array(2 * embeddings_of(one).ravel()), DIMENSION)
    cases = {
        "lack the columns frame": one.drop_columns(["frame"]),
        "dimension 16, the rows have 8": make_detections(ROWS, ROWS + 1, dimension=8),
        "length 1": one.set_column(place, "embedding", long),
        "an id occurs twice": pa.concat_tables([one, one]),
        "do not fit the schema": one.set_column(2, "camera", pa.nulls(1, pa.string())),
    }
    for message, table in cases.items():
        with pytest.raises(StoreError, match=message):
            filled.upsert(table)
    assert filled.count() == ROWS
    filled.upsert(rows.slice(0, 0))  # nothing to write is no error


def test_above_the_limit_an_index_searches_and_filters_stay_exact(filled: Store, rows: Any) -> None:
    usual = filled.exact_below
    query = embeddings_of(rows)[9]
    try:
        filled.exact_below = 100
        filled.optimize()
        where = Filter(cameras=(YARD,), until=START + timedelta(seconds=200))
        ids, _ = _expected(rows, query, where)
        assert filled.search(query, where=where, limit=500)[0]["id"].to_pylist() == ids
        (found,) = filled.search(query, limit=10)
        assert len(set(found["id"].to_pylist()) & set(_expected(rows, query, EVERYTHING)[0][:10])) >= 8
        assert found["id"][0].as_py() == rows["id"][9].as_py()
    finally:
        filled.exact_below = usual
        filled.optimize()
    assert filled.search(query, limit=ROWS)[0]["id"].to_pylist() == _expected(rows, query, EVERYTHING)[0]


# ---------------------------------------------------------------------- stores that are changed


def test_store_keeps_its_promises_from_making_to_reopening(
    new_uri: Callable[[], str], make_detections: Callable[..., Any]
) -> None:
    uri = new_uri()
    with pytest.raises(StoreError, match="index footage into it"):
        open_store(uri)
    store = open_store(uri, info=INFO, create=True)
    assert store.count() == 0 and store.sources() == [] and list(store.scan()) == []
    assert len(store.search(np.ones(DIMENSION))[0]) == 0
    rows = make_detections(0, 60)
    store.upsert(rows)
    _upserting_replaces(store, rows)
    _deleting_removes(store, rows)
    _bookkeeping_is_kept(store)
    again = open_store(uri, info=INFO, create=True)  # while the first is open
    store.close()
    assert again.info == INFO and again.count() == 40
    assert [state.source for state in again.sources()] == ["/footage/a.mp4", "rtsp://cam:554/live?channel=1"]
    assert (again.setting("retention_days"), again.setting("missing")) == ("30", None)
    for other, message in (
        (StoreInfo("tiny", "cd" * 32, DIMENSION), "weights_digest abababababab… instead of cdcdcdcdcdcd…"),
        (StoreInfo("tiny", "ab" * 32, 8), "dimension 16 instead of 8"),
        (StoreInfo("large", "ab" * 32, DIMENSION), "model tiny instead of large"),
    ):
        with pytest.raises(StoreError, match=message):
            open_store(uri, info=other, create=True)
    again.purge()
    assert again.count() == 40 and len(again.sources()) == 2
    again.close()


def _upserting_replaces(store: Store, rows: Any) -> None:
    changed = rows.slice(10, 1).set_column(2, rows.schema.field("camera"), pa.array(["elsewhere"]))
    store.upsert(changed)
    assert store.count() == 60 and store.count(Filter(cameras=("elsewhere",))) == 1
    store.upsert(rows.slice(10, 1))
    assert store.count() == 60 and store.count(Filter(cameras=("elsewhere",))) == 0


def _deleting_removes(store: Store, rows: Any) -> None:
    with pytest.raises(StoreError, match="empty filter would delete every detection"):
        store.delete(EVERYTHING)
    assert store.delete(Filter(cameras=("nowhere",))) == 0
    assert store.delete(Filter(cameras=(GATE,))) == 20
    assert store.count() == 40 and store.count(Filter(cameras=(GATE,))) == 0
    assert rows["id"][0].as_py() not in store.search(embeddings_of(rows)[0], limit=60)[0]["id"].to_pylist()


def _bookkeeping_is_kept(store: Store) -> None:
    live = "rtsp://user:p@ss@cam:554/live?channel=1&password=x"
    state = SourceState(live, "cam", "stream", "", START, 7, 3.5, False, error=f"{live}: no answer", fps=25.0)
    video = SourceState("/footage/a.mp4", GATE, "video", "f1", None, 0, 0.0, False, duration=9.5)
    store.set_sources([state, video])
    store.set_source(SourceState("/footage/a.mp4", GATE, "video", "f1", None, 12, 6.0, True))
    first, second = store.sources()
    assert (first.frames_done, first.finished, first.start) == (12, True, None)
    assert (second.source, second.error) == (
        "rtsp://cam:554/live?channel=1",
        "rtsp://cam:554/live?channel=1: no answer",
    )
    assert second.start == START and second.fps == 25.0
    store.set_source(SourceState("/footage/c.mp4", GATE, "video", "", None, 0, 0.0, False))
    store.remove_source("/footage/c.mp4", GATE)
    assert abs(store.sources_written()["/footage/a.mp4", GATE] - datetime.now(timezone.utc)) < timedelta(minutes=5)
    for value in ("1", None, "30"):
        store.set_setting("retention_days", value)
        assert store.setting("retention_days") == value


def _stored_bytes(uri: str) -> Iterator[bytes]:
    """Contents of all files of a store in a folder or bucket."""
    if not uri.startswith("s3://"):
        yield from (path.read_bytes() for path in Path(uri).rglob("*") if path.is_file())
        return
    import boto3

    bucket, prefix = uri.removeprefix("s3://").split("/", 1)
    client = boto3.client("s3")
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for entry in page["Contents"]:
            yield client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()


def test_purging_frees_the_bytes_of_what_was_deleted(
    new_uri: Callable[[], str], make_detections: Callable[..., Any]
) -> None:
    uri = new_uri()
    if uri.startswith("http"):
        pytest.skip("a Milvus server removes its old files by itself, when it next collects its garbage")
    rows = make_detections(0, 300)
    gone, kept = (embeddings_of(rows)[k].tobytes() for k in (0, 150))
    store = open_store(uri, info=INFO, create=True)
    store.upsert(rows)
    store.optimize()
    assert any(gone in content for content in _stored_bytes(uri))
    store.delete(Filter(ids=(rows["id"][0].as_py(),)))
    store.optimize()
    assert any(gone in content for content in _stored_bytes(uri))  # what the purge is for
    store.purge()
    assert not any(gone in content for content in _stored_bytes(uri))
    assert any(kept in content for content in _stored_bytes(uri))
    assert store.count() == 299
    store.close()


# ---------------------------------------------------------------------- several processes


def write(uri: str, parts: list[Any], name: str, progress: Path, barrier: Any) -> None:
    """Writes parts of rows one after the other, and a dot a part into the file of the progress."""
    store = open_store(uri, info=INFO, create=True)
    if barrier is not None:
        barrier.wait(120)
    with progress.open("w") as written:
        for number, part in enumerate(parts):
            store.upsert(part)
            state = SourceState("/footage/a.mp4", name, "video", "", None, number + 1, 0.5 * number, False)
            store.set_source(state)
            written.write(".")
            written.flush()
    store.close()


@pytest.fixture(scope="module")
def start_writer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., tuple[Any, Path]]]:
    """Starts a process that writes parts of rows one after the other, and a file that grows with each written one."""
    started = []

    def start_writing(uri: str, parts: list[Any], name: str, barrier: Any = None) -> tuple[Any, Path]:
        progress = tmp_path_factory.mktemp("progress") / "written"
        started.append(start(write, uri, parts, name, progress, barrier))
        return started[-1], progress

    yield start_writing
    for process in started:
        process.kill()
        process.join()


def _until(condition: Callable[[], bool], process: Any) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end and process.exitcode in (None, 0), f"the writer ended with {process.exitcode}"
        time.sleep(0.01)


def _written(progress: Path) -> int:
    return progress.stat().st_size if progress.exists() else 0


def test_a_killed_writer_loses_and_doubles_nothing(
    new_uri: Callable[[], str], make_detections: Callable[..., Any], start_writer: Callable[..., tuple[Any, Path]]
) -> None:
    uri = new_uri()
    rows = make_detections(0, 1000)
    parts = [rows.slice(start, 10) for start in range(0, 1000, 10)]
    process, progress = start_writer(uri, parts, "cam")
    _until(lambda: _written(progress) >= 3, process)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    done = _written(progress)
    store = open_store(uri, info=INFO, create=True)
    ids = [i for batch in store.scan(columns=["id"]) for i in batch["id"].to_pylist()]
    assert len(ids) == len(set(ids)) == store.count()
    assert 3 <= done < 100 and set(rows["id"].to_pylist()[: 10 * done]) <= set(ids)
    assert len(ids) in (10 * done, 10 * (done + 1))  # the part that was under way is there whole or not at all
    (state,) = store.sources()
    assert state.frames_done in (done, done + 1) and 10 * state.frames_done <= len(ids)
    store.upsert(pa.concat_tables(parts[: done + 2]))  # going on a little before where it ended
    assert store.count() == 10 * (done + 2)
    store.close()


def test_writers_at_once_double_nothing_while_others_read_and_tidy_up(
    new_uri: Callable[[], str], make_detections: Callable[..., Any], start_writer: Callable[..., tuple[Any, Path]]
) -> None:
    uri = new_uri()
    rows = make_detections(0, 300)
    parts = [rows.slice(start, 30) for start in range(0, 300, 30)]
    store = open_store(uri, info=INFO, create=True)
    # The same rows at the same time: without the key in Lance's schema both processes would insert them.
    together = barrier(2)
    writers = [start_writer(uri, parts, name, together) for name in ("one", "two")]
    counts: list[int] = []
    failures: list[BaseException] = []
    ended = threading.Event()  # of two threads that ask a process for its exit status, one is told 255

    def read() -> None:
        try:
            while not ended.is_set():
                counts.append(store.count())
                (found,) = store.search(embeddings_of(rows)[0], limit=400)
                assert len(set(found["id"].to_pylist())) == len(found)
                time.sleep(0.05)
        except BaseException as error:
            failures.append(error)

    def tidy() -> None:
        try:
            while not ended.is_set() and not all(_written(progress) for _, progress in writers):
                time.sleep(0.02)
            store.optimize()
            if not uri.startswith("http"):  # takes a Milvus server half a minute
                store.purge()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=target) for target in (read, read, tidy)]
    for thread in threads:
        thread.start()
    for process, _ in writers:
        process.join()
    ended.set()
    for thread in threads:
        thread.join()
    assert not failures and [process.exitcode for process, _ in writers] == [0, 0]
    assert store.count() == 300 and all(count % 30 == 0 for count in counts) and len(counts) > 1
    ids = [i for batch in store.scan(columns=["id"]) for i in batch["id"].to_pylist()]
    assert sorted(ids) == sorted(rows["id"].to_pylist())
    assert {(s.camera, s.frames_done) for s in store.sources()} == {("one", 10), ("two", 10)}
    store.close()
