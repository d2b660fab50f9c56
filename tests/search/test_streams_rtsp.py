"""RTSP against a server of GStreamer's: pictures come with user and password, and again after the camera was killed."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from person_search.search.index import IndexOptions, IndexReport, index
from person_search.search.sources import find_sources, read_frame
from person_search.search.store import open_store
from PIL import Image

SERVER = Path(__file__).parent / "rtsp_server.py"
OPTIONS = IndexOptions(every=Fraction(1, 5), progress=False)
PATIENCE = 120.0  # seconds, on a machine that does other things as well


def system_python() -> str | None:
    """A Python that has GStreamer's RTSP server, which no wheel brings."""
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin")
    check = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    if python is None or subprocess.run([python, "-c", check], capture_output=True).returncode:
        return None
    return python


@pytest.fixture
def serve(tmp_path, walk) -> Iterator[tuple[str, Callable[[], subprocess.Popen]]]:
    """The URL of a camera, and what switches it on."""
    python = system_python()
    if python is None:
        pytest.skip("needs GStreamer's RTSP server: apt install gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good")
    for number, image in enumerate(walk(0, 20)):
        Image.fromarray(image).save(tmp_path / f"{number:03d}.jpg")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
    height, width = image.shape[:2]
    running: list[subprocess.Popen] = []

    def start() -> subprocess.Popen:
        command = [python, str(SERVER), port, str(tmp_path), f"{width}x{height}", "viewer", "s3cret"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        running.append(server)
        if server.stdout is None or server.stdout.readline() != "serving\n":
            pytest.skip("GStreamer lacks the plugins of gstreamer1.0-plugins-good")
        return server

    yield f"rtsp://viewer:s3cret@127.0.0.1:{port}/cam", start
    for server in running:
        server.kill()
        server.wait()


def test_a_camera_that_is_killed_is_connected_to_again(serve, searcher, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("person_search.search.streams._FIRST_PAUSE", 0.2)
    url, switch_on = serve
    store = open_store(str(tmp_path / "store"), info=searcher.info, create=True)
    options = replace(OPTIONS, keep_frames=tmp_path / "kept")
    stop, reports = threading.Event(), list[IndexReport]()
    run = threading.Thread(
        target=lambda: reports.append(index(searcher, store, find_sources([url]), options, stop=stop))
    )
    camera = switch_on()
    run.start()
    try:
        wait_for(lambda: frames_of(store))
        camera.kill()
        camera.wait()
        wait_for(lambda: "camera lost" in caplog.text)
        before = frames_of(store)
        switch_on()
        wait_for(lambda: max(frames_of(store)) > max(before) + 1000)  # milliseconds
    finally:
        stop.set()
        run.join(PATIENCE)
    (report,), (state,) = reports, store.sources()
    assert not report.left_out and not state.finished and state.source == url.replace("viewer:s3cret@", "")
    rows = [row for batch in store.scan() for row in batch.to_pylist()]
    assert len({row["id"] for row in rows}) == len(rows) and "s3cret" not in f"{rows}{state}{caplog.text}"
    assert read_frame(store, rows[-1]).shape[2] == 3


def test_a_wrong_password_is_said(serve, searcher, tmp_path, caplog):
    url, switch_on = serve
    switch_on()
    store = open_store(str(tmp_path / "store"), info=searcher.info, create=True)
    index(searcher, store, find_sources([url.replace("s3cret", "guess")]), replace(OPTIONS, seconds=2.0))
    assert "401" in caplog.text and "guess" not in caplog.text
    assert not store.count()


def frames_of(store) -> list[int]:
    return [number for batch in store.scan(columns=["frame"]) for number in batch["frame"].to_pylist()]


def wait_for(condition: Callable[[], object]) -> None:
    """Returns once the condition holds; what is indexed is written within five seconds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it has not happened"
        time.sleep(0.2)
