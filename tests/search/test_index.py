"""Indexing: nothing twice, nothing lost, whenever it is killed; what is damaged is named; live streams come back."""

from __future__ import annotations

import http.server
import os
import signal
import threading
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from pathlib import Path

import numpy as np
import person_search.search.index
import pyarrow as pa
import pytest
import torch
from person_search.errors import ConfigError, DatasetError
from person_search.search.index import IndexOptions, index
from person_search.search.searcher import PersonSearcher
from person_search.search.sources import find_sources, read_frame
from person_search.search.store import embeddings_of, open_store
from PIL import Image

from ..processes import start

OPTIONS = IndexOptions(every=Fraction(1, 5), batch_size=2, progress=False)


def table(store) -> pa.Table:
    return pa.Table.from_batches(list(store.scan())).sort_by("id")


def assert_equal(first: pa.Table, second: pa.Table) -> None:
    """Equal rows; embeddings and boxes but for the rounding of other batches."""
    for name in ("id", "source", "camera", "time", "offset", "frame", "tracklet", "width", "height"):
        assert first[name].to_pylist() == second[name].to_pylist(), name
    np.testing.assert_allclose(embeddings_of(first), embeddings_of(second), atol=1e-5)
    np.testing.assert_allclose(first["x0"].to_numpy(), second["x0"].to_numpy(), atol=1e-2)


@pytest.fixture(scope="module")
def footage(tmp_path_factory, write_video, walk, textured) -> Path:
    """A folder of two videos and three photos of different sizes."""
    folder = tmp_path_factory.mktemp("footage")
    write_video(folder / "gate.mp4", walk(0, 40), metadata={"creation_time": "2024-05-01T12:30:00Z"})
    write_video(folder / "yard.avi", walk(1, 30))
    for number, size in enumerate([(160, 200), (220, 150), (90, 300)]):
        Image.fromarray(textured(number, *size)).save(folder / f"photo{number}.png")
    return folder


@pytest.fixture(scope="module")
def indexed(footage, searcher, tmp_path_factory) -> pa.Table:
    """The rows of an uninterrupted run."""
    store = open_store(str(tmp_path_factory.mktemp("whole") / "store"), info=searcher.info, create=True)
    report = index(searcher, store, find_sources([footage]), OPTIONS)
    assert report.sources == 5 and report.frames == 20 + 15 + 3 and not report.left_out
    assert report.detections == store.count() > 40
    return table(store)


def test_rows_are_what_the_searcher_finds(indexed, footage, searcher, store):
    rows = indexed.to_pylist()
    photo = [row for row in rows if row["source"].endswith("photo1.png")]
    found = searcher.detect(footage / "photo1.png")
    assert len(photo) == len(found) > 0
    np.testing.assert_allclose([[r["x0"], r["y0"], r["x1"], r["y1"]] for r in photo], found.boxes, atol=1e-2)
    assert {(row["width"], row["height"]) for row in photo} == {(150, 220)}
    assert len({row["tracklet"] for row in photo}) == len(photo)
    assert {row["camera"] for row in photo} == {footage.name}
    assert {row["camera"] for row in rows} == {"gate", "yard", footage.name}


def test_times_come_from_the_file(indexed):
    start = datetime(2024, 5, 1, 12, 30, tzinfo=timezone.utc)
    for row in indexed.to_pylist():
        expected = start + timedelta(seconds=row["offset"]) if row["camera"] == "gate" else None
        assert row["time"] == expected


def test_a_second_run_finds_nothing_to_do(footage, searcher, store, indexed):
    index(searcher, store, find_sources([footage]), OPTIONS)
    report = index(searcher, store, find_sources([footage]), OPTIONS)
    assert (report.frames, report.already) == (0, 5)
    assert_equal(table(store), indexed)


@pytest.mark.parametrize("frames", [1, 7, 20, 31])
def test_a_run_that_was_stopped_goes_on(footage, searcher, store, indexed, frames):
    class Stopping:
        """The searcher, which stops the run after some frames."""

        def __init__(self):
            self.stop, self.seen, self.dimension = threading.Event(), 0, searcher.dimension

        def detect_batch(self, images):
            self.seen += len(images)
            if self.seen >= frames:
                self.stop.set()
            return searcher.detect_batch(images)

    stopping = Stopping()
    first = index(stopping, store, find_sources([footage]), replace(OPTIONS, readers=1), stop=stopping.stop)
    assert frames <= first.frames < 38
    second = index(searcher, store, find_sources([footage]), replace(OPTIONS, batch_size=1))
    assert first.frames + second.frames == 38
    assert_equal(table(store), indexed)


def index_and_be_killed(checkpoint: Path, uri: str, footage: Path, batches: int, seconds: float) -> None:
    """Indexes, writes often, and dies some time after a number of batches: in the middle of whatever it does then."""
    torch.set_num_threads(1)
    person_search.search.index._WRITE_ROWS = 6
    searcher = PersonSearcher(None, checkpoint)
    detect, seen = searcher.detect_batch, []

    def detect_batch(images):
        seen.append(len(images))
        if len(seen) == batches:
            threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
        time.sleep(0.01)  # it cannot be over before the kill
        return detect(images)

    searcher.detect_batch = detect_batch
    index(searcher, open_store(uri, info=searcher.info, create=True), find_sources([footage]), OPTIONS)


def test_a_run_that_is_killed_again_and_again_goes_on(footage, searcher, checkpoint, indexed, tmp_path):
    uri, counts = str(tmp_path / "store"), []
    for batches, seconds in ((4, 0.0), (3, 0.011), (3, 0.023), (2, 0.037)):
        process = start(index_and_be_killed, checkpoint, uri, footage, batches, seconds)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        store = open_store(uri, info=searcher.info)
        counts.append(store.count())
        store.close()
    assert 0 < counts[-1] < len(indexed) and counts == sorted(counts)
    store = open_store(uri, info=searcher.info)
    index(searcher, store, find_sources([footage]), OPTIONS)
    assert_equal(table(store), indexed)


def test_rows_behind_the_state_are_replaced(footage, searcher, store, indexed):
    sources = find_sources([footage / "gate.mp4"])
    index(searcher, store, sources, OPTIONS)
    (state,) = store.sources()
    before = table(store)
    # As if the program had been killed between a write of rows and that of the state, and a GPU then found one less.
    store.set_source(replace(state, finished=False, frames_done=21, seconds_done=2.0))
    last = before.slice(before.num_rows - 1).to_pylist()[0]
    store.upsert(pa.Table.from_pylist([{**last, "id": last["id"][:-4] + "0099"}], schema=before.schema))
    report = index(searcher, store, sources, OPTIONS)
    assert report.frames == 9
    assert_equal(table(store), before)


def test_a_file_that_has_changed_is_indexed_anew(tmp_path, write_video, walk, searcher, store):
    path = write_video(tmp_path / "cam.mp4", walk(0, 20))
    index(searcher, store, find_sources([path]), OPTIONS)
    first = table(store)
    write_video(path, walk(5, 8))
    report = index(searcher, store, find_sources([path]), OPTIONS)
    assert report.frames == 4
    assert max(table(store)["frame"].to_pylist()) < 8 < max(first["frame"].to_pylist())


def test_another_sampling_indexes_anew(tmp_path, write_video, walk, searcher, store):
    path = write_video(tmp_path / "cam.mp4", walk(0, 20))
    index(searcher, store, find_sources([path]), OPTIONS)
    report = index(searcher, store, find_sources([path]), replace(OPTIONS, every=None))
    assert report.frames == 20
    assert set(table(store)["frame"].to_pylist()) == set(range(20))


def test_damaged_files_are_named_and_left_out(footage, searcher, store, tmp_path, indexed):
    folder = tmp_path / "mixed"
    folder.mkdir()
    for name in ("gate.mp4", "photo0.png"):
        (folder / name).write_bytes((footage / name).read_bytes())
    (folder / "broken.mp4").write_bytes(b"\0" * 5000)
    (folder / "broken.jpg").write_text("no picture")
    report = index(searcher, store, find_sources([folder]), OPTIONS)
    assert {Path(name).name for name in report.left_out} == {"broken.mp4", "broken.jpg"}
    assert report.frames == 21
    errors = {Path(state.source).name: state.error for state in store.sources()}
    assert "broken.mp4" in errors["broken.mp4"] and "broken.jpg" in errors["broken.jpg"]
    assert not errors["gate.mp4"]
    # Once it is mended it is indexed like any other.
    (folder / "broken.jpg").write_bytes((footage / "photo1.png").read_bytes())
    report = index(searcher, store, find_sources([folder]), OPTIONS)
    assert report.frames == 1 and report.already == 2


def test_a_fault_of_the_program_is_not_taken_for_a_damaged_file(footage, searcher, store, monkeypatch):
    def fail(*args):
        raise ZeroDivisionError

    monkeypatch.setattr("person_search.search.index.video_frames", fail)
    with pytest.raises(ZeroDivisionError):
        index(searcher, store, find_sources([footage]), OPTIONS)
    assert threading.active_count() < 10


def test_the_start_can_be_given_and_cameras_named(footage, searcher, store):
    start = datetime(2023, 1, 1, tzinfo=timezone.utc)
    sources = find_sources([footage / "gate.mp4", footage / "yard.avi"], camera="north-{stem}", start=start)
    index(searcher, store, sources, OPTIONS)
    rows = table(store).to_pylist()
    assert {row["camera"] for row in rows} == {"north-gate", "north-yard"}
    assert all(row["time"] == start + timedelta(seconds=row["offset"]) for row in rows)


def test_stored_rows_lead_back_to_their_pictures(footage, searcher, store):
    index(searcher, store, find_sources([footage]), OPTIONS)
    for row in table(store).to_pylist()[::7]:
        box = np.array([[row[name] for name in ("x0", "y0", "x1", "y1")]], np.float32)
        embedding = searcher.embed(read_frame(store, row), box)[0]
        np.testing.assert_allclose(embedding, row["embedding"], atol=0.2)
    with pytest.raises(DatasetError, match="is no source"):
        read_frame(store, {**row, "source": "/etc/passwd"})


@pytest.mark.parametrize(
    ("arguments", "options", "error", "named"),
    [
        (["missing.mp4"], {}, DatasetError, "missing.mp4"),
        ([], {}, ConfigError, "no source"),
        (["."], {"camera": "{nothing}"}, ConfigError, "nothing"),
        (["."], {"start": datetime(2024, 1, 1)}, ConfigError, "time zone"),
        (["file:///tmp/a.mp4"], {}, ConfigError, "file://"),
    ],
)
def test_what_is_no_source_is_refused(arguments, options, error, named, footage, monkeypatch):
    monkeypatch.chdir(footage)
    with pytest.raises(error, match=named):
        find_sources(arguments, **options)


def test_an_empty_folder_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing to see")
    with pytest.raises(DatasetError, match="holds no photo and no video"):
        find_sources([tmp_path])


@pytest.fixture
def camera(tmp_path, write_video, walk):
    """A camera that sends two seconds of video to whoever connects and then hangs up, at its URL."""
    content = write_video(tmp_path / "live.ts", walk(0, 20), codec="mpeg2video", fps=25).read_bytes()
    connections = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            connections.append(self.path)
            self.send_response(200)
            self.end_headers()
            for place in range(0, len(content), 4096):
                self.wfile.write(content[place : place + 4096])
                time.sleep(0.02)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://user:secret@127.0.0.1:{server.server_port}/cam1", connections
    server.shutdown()


def test_a_live_stream_that_ends_is_connected_to_again(camera, searcher, store, tmp_path, monkeypatch):
    monkeypatch.setattr("person_search.search.streams._FIRST_PAUSE", 0.2)
    url, connections = camera
    options = replace(OPTIONS, every=Fraction(1, 20), seconds=6.0, keep_frames=tmp_path / "kept")
    before = datetime.now(timezone.utc)
    report = index(searcher, store, find_sources([url]), options)
    assert len(connections) >= 2 and report.frames > 3
    rows = table(store).to_pylist()
    (state,) = store.sources()
    assert state.kind == "stream" and not state.finished
    assert rows and "secret" not in str(rows) + str(state)
    assert all(before <= row["time"] <= datetime.now(timezone.utc) for row in rows)
    frames = [row["frame"] for row in rows]
    assert read_frame(store, rows[0]).shape == (160, 200, 3)
    # A later run goes on behind, with numbers that are free.
    index(searcher, store, find_sources([url]), replace(options, seconds=2.0))
    later = [row["frame"] for row in table(store).to_pylist() if row["frame"] not in frames]
    assert later and min(later) > max(frames)


def test_pictures_of_a_live_stream_that_were_not_kept_are_said_to_be(camera, searcher, store):
    index(searcher, store, find_sources([camera[0]]), replace(OPTIONS, seconds=2.0))
    with pytest.raises(DatasetError, match="--keep-frames"):
        read_frame(store, table(store).to_pylist()[0])
