"""Videos for the page: ranges of the file itself, and parts that are encoded anew."""

from __future__ import annotations

import io
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from fastapi.testclient import TestClient
from person_search.search.serve.app import create_app
from person_search.search.serve.players import ClipMaker, played_type
from person_search.search.serve.settings import ServeSettings
from person_search.search.serve.uploads import RequestError
from person_search.search.sources import read_frame
from person_search.search.store import Store

from .conftest import GREY, HUES, Walk, color, write_video


def source_of(client: TestClient, camera: str) -> str:
    return client.get("/api/sources", params={"camera": camera}).json()["sources"][0]["id"]


def pictures(data: bytes | Path) -> list[tuple[float, np.ndarray]]:
    """Times and pixels of a video's frames."""
    with av.open(str(data) if isinstance(data, Path) else io.BytesIO(data)) as container:
        return [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def left_edge(image: np.ndarray, hue: float) -> int:
    """Left edge of the region of a color."""
    near = np.abs(image.astype(int) - color(hue)).max(axis=2) < 60
    return int(np.flatnonzero(near.any(axis=0))[0])


def test_playback(client: TestClient) -> None:
    assert client.get(f"/api/sources/{source_of(client, 'gate')}/playback").json() == {"mode": "video", "reason": ""}
    assert client.get(f"/api/sources/{source_of(client, 'yard')}/playback").json()["mode"] == "clip"
    for camera in ("photos", "live"):
        assert client.get(f"/api/sources/{source_of(client, camera)}/playback").json()["mode"] == "none"


def test_ranges_of_the_file(client: TestClient, footage_folder: Path) -> None:
    whole = (footage_folder / "gate.mp4").read_bytes()
    url = f"/api/sources/{source_of(client, 'gate')}/video"
    answer = client.get(url)
    assert answer.status_code == 200 and answer.content == whole
    assert answer.headers["content-type"] == "video/mp4" and answer.headers["accept-ranges"] == "bytes"
    part = client.get(url, headers={"Range": "bytes=100-299"})
    assert part.status_code == 206 and part.content == whole[100:300]
    assert part.headers["content-range"] == f"bytes 100-299/{len(whole)}"
    assert client.get(url, headers={"Range": f"bytes={len(whole)}-"}).status_code == 416
    assert client.get(f"/api/sources/{source_of(client, 'yard')}/video").status_code == 415


def test_clip_shows_the_asked_part(client: TestClient, store: Store) -> None:
    answer = client.get(f"/api/sources/{source_of(client, 'yard')}/clip", params={"start": 5, "end": 7})
    assert answer.status_code == 200 and answer.headers["content-type"] == "video/mp4"
    shown = pictures(answer.content)
    assert [round(time, 3) for time, _ in shown] == pytest.approx([number / 5 for number in range(11)], abs=0.002)
    (row,) = [
        row
        for batch in store.scan()
        for row in batch.to_pylist()
        if row["camera"] == "yard" and row["frame"] == 30 and row["y0"] < 100
    ]
    original = read_frame(store, row)
    assert abs(left_edge(shown[5][1], HUES["red"]) - row["x0"]) <= 3  # at 6 s
    assert np.abs(shown[5][1].astype(int) - original).mean() < 4
    with av.open(io.BytesIO(answer.content)) as container:
        assert container.streams.video[0].codec_context.name == "h264"


def test_clips_end_where_they_have_to(client: TestClient) -> None:
    url = f"/api/sources/{source_of(client, 'yard')}/clip"
    late = client.get(url, params={"start": 100, "end": 110})
    assert late.status_code == 404 and late.json()["error"] == "yard.avi has no frame between 100.0 and 110.0 seconds"
    for start, end in ((5, 5), (5, 4), (-1, 2), ("nan", 2)):
        assert client.get(url, params={"start": start, "end": end}).status_code == 422
    assert (
        client.get(f"/api/sources/{source_of(client, 'photos')}/clip", params={"start": 0, "end": 2}).status_code == 415
    )


def test_long_clips_are_cut_off(store: Store) -> None:
    with TestClient(
        create_app(store, settings=ServeSettings(max_clip_seconds=2)), base_url="http://localhost"
    ) as client:
        answer = client.get(f"/api/sources/{source_of(client, 'yard')}/clip", params={"start": 0.5, "end": 11})
    assert len(pictures(answer.content)) == 10  # from 0.6 s to 2.4 s


def test_turned_video_is_shown_upright(tmp_path: Path) -> None:
    """A phone's video, whose metadata say how to turn it."""
    upright = np.full((320, 240, 3), GREY, np.uint8)
    upright[20:80, 30:60] = color(HUES["red"])
    with av.open(str(tmp_path / "plain.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(5):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.rot90(upright)), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 5)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    data = bytearray((tmp_path / "plain.mp4").read_bytes())
    # The matrix of the track header: by 90 degrees clockwise.
    plain = b"".join(value.to_bytes(4, "big", signed=True) for value in (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30))
    turned = b"".join(
        value.to_bytes(4, "big", signed=True) for value in (0, 65536, 0, -65536, 0, 0, 240 << 16, 0, 1 << 30)
    )
    at = data.index(plain, data.index(b"tkhd"))
    data[at : at + len(plain)] = turned
    (tmp_path / "turned.mp4").write_bytes(bytes(data))
    maker = ClipMaker()
    try:
        (_, image), *_ = pictures(maker.clip(str(tmp_path / "turned.mp4"), 0, 1)[0])
    finally:
        maker.close()
    assert image.shape == upright.shape
    assert np.abs(image.astype(int) - upright).mean() < 5


def test_damaged_video_is_shown_as_far_as_it_goes(tmp_path: Path) -> None:
    file = tmp_path / "a.avi"
    write_video(file, [Walk(HUES["red"], 20, 0, 4)], "mpeg4", seconds=4)
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)
    file.write_bytes(bytes(data))
    maker = ClipMaker()
    try:
        clip, _ = maker.clip(str(file), 0, 4)
        assert len(pictures(clip)) >= 5
        assert maker.clip(str(file), 0, 4)[0] == clip
        maker.clear()
        assert not clip.exists()
    finally:
        maker.close()


def test_what_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_text("no video")
    for name in ("a.mp4", "missing.mp4"):
        with pytest.raises(RequestError) as caught:
            played_type(str(tmp_path / name))
        assert str(tmp_path) not in str(caught.value) and name in str(caught.value)


def test_browser_formats(tmp_path: Path) -> None:
    for name, codec, expected in (
        ("a.mp4", "libx264", "video/mp4"),
        ("a.webm", "libvpx", "video/webm"),
        ("b.mp4", "mpeg4", None),
        ("a.avi", "mjpeg", None),
    ):
        if codec in av.codecs_available:
            pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            with av.open(str(tmp_path / name), "w") as container:
                stream = container.add_stream(codec, rate=5)
                stream.width, stream.height, stream.pix_fmt = 64, 64, pixels
                for number in range(5):
                    frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
                    frame.pts, frame.time_base = number, Fraction(1, 5)
                    container.mux(stream.encode(frame))
                container.mux(stream.encode(None))
            assert played_type(str(tmp_path / name)) == expected, name


def test_encoding_is_done_once_for_all_who_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "a.avi", [], "mpeg4", seconds=2)
    maker, encoded = ClipMaker(), []
    encode = maker._encode
    monkeypatch.setattr(maker, "_encode", lambda *args: encoded.append(args) or encode(*args))
    threads = [threading.Thread(target=maker.clip, args=(str(tmp_path / "a.avi"), 0, 1)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    maker.close()
    assert len(encoded) == 1
