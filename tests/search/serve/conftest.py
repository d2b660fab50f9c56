"""A small store of colored people, videos and photos to serve, and a searcher that knows people by their color."""

from __future__ import annotations

import colorsys
import io
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("lancedb", reason="the extra [search] is not installed")
pytest.importorskip("fastapi", reason="the extra [search] is not installed")

import av  # noqa: E402
import pyarrow as pa  # noqa: E402
import uvicorn  # noqa: E402
from fastapi import FastAPI  # noqa: E402
from fastapi.testclient import TestClient  # noqa: E402
from person_search.search.searcher import Detections  # noqa: E402
from person_search.search.serve.app import create_app  # noqa: E402
from person_search.search.serve.settings import ServeSettings  # noqa: E402
from person_search.search.store import (  # noqa: E402
    SourceState,
    Store,
    StoreInfo,
    detection_id,
    detections_schema,
    open_store,
    tracklet_id,
)

DIMENSION = 32
INFO = StoreInfo("colors", "0" * 64, DIMENSION)
HUES = {"red": 0, "yellow": 2 / 13, "green": 5 / 13, "blue": 8 / 13}  # strangers have the hues between
START = datetime(2024, 5, 1, 12, 0, tzinfo=timezone.utc)
WIDTH, HEIGHT, PERSON = 320, 240, (24, 60)
GREY = 96


def color(hue: float) -> tuple[int, int, int]:
    """A strong color as 8-bit RGB."""
    red, green, blue = (round(255 * value) for value in colorsys.hsv_to_rgb(hue, 0.9, 0.9))
    return red, green, blue


def embed_color(pixels: np.ndarray) -> np.ndarray:
    """Unit vector of a person's hue: alike for like hues alone."""
    hue = colorsys.rgb_to_hsv(*(np.median(pixels.reshape(-1, 3), axis=0) / 255))[0]
    turns = 2 * np.pi * hue * np.arange(1, DIMENSION // 2 + 1)
    vector = np.concatenate([np.cos(turns), np.sin(turns)])
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def draw(people: Sequence[tuple[float, float, float]]) -> np.ndarray:
    """Picture of people, each given by hue and by the left and upper edge of the box."""
    image = np.full((HEIGHT, WIDTH, 3), GREY, np.uint8)
    for hue, left, top in people:
        image[int(top) : int(top) + PERSON[1], int(left) : int(left) + PERSON[0]] = color(hue)
    return image


def png(image: np.ndarray) -> bytes:
    """PNG file of a picture."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


class ColorSearcher:
    """Searcher that takes every colored region for a person."""

    info = INFO

    def __init__(self) -> None:
        self.embedded: list[tuple[float, ...]] = []

    def detect(self, image: np.ndarray) -> Detections:
        import cv2

        spread = image.max(axis=2).astype(int) - image.min(axis=2)
        _, _, stats, _ = cv2.connectedComponentsWithStats((spread > 90).astype(np.uint8))
        boxes = [(x, y, x + w, y + h) for x, y, w, h, area in stats[1:] if area > 200]
        boxes = np.array(boxes, np.float32).reshape(-1, 4)
        return Detections(
            boxes, np.linspace(0.99, 0.9, len(boxes)).astype(np.float32), self._embed(image, boxes), image.shape[:2]
        )

    def embed(self, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        self.embedded += [tuple(map(float, box)) for box in boxes]
        return self._embed(image, boxes)

    def _embed(self, image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        rows = [embed_color(image[int(y0) : int(y1), int(x0) : int(x1)]) for x0, y0, x1, y1 in boxes]
        return np.stack(rows) if rows else np.empty((0, DIMENSION), np.float32)


@dataclass(frozen=True)
class Walk:
    """A person who crosses the picture of a video."""

    hue: float
    top: int
    first: float
    last: float


def write_video(path: Path, walks: Sequence[Walk], codec: str, seconds: int = 12, rate: int = 5) -> list[list[tuple]]:
    """Writes a video; returns the places (walk, x, y) of everybody in each frame."""
    frames = []
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(seconds * rate):
            time = number / rate
            places = [
                (walk, 10 + (WIDTH - 50) * (time - w.first) / (w.last - w.first), w.top)
                for walk, w in enumerate(walks)
                if w.first <= time <= w.last
            ]
            frame = av.VideoFrame.from_ndarray(draw([(walks[w].hue, x, y) for w, x, y in places]), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
            frames.append(places)
        container.mux(stream.encode(None))
    return frames


class StoreMaker:
    """Writes detections and their sources into a store."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def add(
        self, path: Path, camera: str, kind: str, start: datetime | None, rows: list[dict], duration: float = 0
    ) -> None:
        source = str(path)
        columns: dict[str, list] = {name: [] for name in detections_schema(DIMENSION).names}
        for row in rows:
            x, y = row["place"]
            values = {
                **{"id": detection_id(source, camera, row["frame"], row["box"]), "source": source, "camera": camera},
                **{"time": start and start + timedelta(seconds=row["offset"]), "offset": row["offset"]},
                **{"frame": row["frame"], "x0": x, "y0": y, "x1": x + PERSON[0], "y1": y + PERSON[1]},
                **{"width": WIDTH, "height": HEIGHT, "score": 0.95},
                **{"tracklet": tracklet_id(source, camera, row["tracklet"])},
                **{"embedding": embed_color(np.array([color(row["hue"])], float)).tolist()},
            }
            for name, value in values.items():
                columns[name].append(value)
        self.store.upsert(pa.table(columns, schema=detections_schema(DIMENSION)))
        self.store.set_source(SourceState(source, camera, kind, "f", start, 1, duration, True, duration=duration))

    def add_video(self, path: Path, camera: str, start: datetime | None, walks: Sequence[Walk], codec: str) -> None:
        rows = [
            {"frame": number, "box": box, "offset": number / 5, "place": (x, y), "tracklet": walk}
            # No two looks of a person are quite the same.
            | {"hue": walks[walk].hue + 1e-4 * number}
            for number, places in enumerate(write_video(path, walks, codec))
            for box, (walk, x, y) in enumerate(places)
        ]
        self.add(path, camera, "video", start, rows, duration=12)

    def add_photo(self, path: Path, camera: str, people: Sequence[tuple[float, float, float]]) -> None:
        Image.fromarray(draw(people)).save(path)
        rows = [
            {"frame": 0, "box": box, "offset": 0.0, "place": (x, y), "tracklet": box, "hue": hue}
            for box, (hue, x, y) in enumerate(people)
        ]
        self.add(path, camera, "photo", None, rows)


@pytest.fixture(scope="session")
def footage_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a store and what it indexes."""
    folder = tmp_path_factory.mktemp("served")
    store = open_store(str(folder / "yard.store"), info=INFO, create=True)
    maker = StoreMaker(store)
    gate = [Walk(HUES["red"], 20, 0, 6), Walk(HUES["blue"], 120, 2, 10)]
    maker.add_video(folder / "gate.mp4", "gate", START, gate, "libx264")
    yard = [Walk(HUES["red"], 40, 4, 11), Walk(HUES["green"], 150, 0, 8)]
    maker.add_video(folder / "yard.avi", "yard", START + timedelta(minutes=10), yard, "mpeg4")
    # Photos of many people: how alike different people look is learnt from them.
    for photo in range(4):
        crowd = [((number + 0.5) / 13, 4 + 30 * (number % 10), 20 + 100 * (number // 10)) for number in range(12)]
        maker.add_photo(folder / f"crowd{photo}.png", "photos", crowd)
    maker.add_photo(folder / "<img src=x onerror=alert(1)>.png", "photos", [(HUES["yellow"], 100, 80)])
    store.set_source(SourceState("rtsp://camera.local/live", "live", "stream", "", START, 0, 0, False))
    store.close()
    return folder


@pytest.fixture
def store(footage_folder: Path) -> Iterator[Store]:
    """The store; tests must not write to it."""
    opened = open_store(str(footage_folder / "yard.store"))
    yield opened
    opened.close()


@pytest.fixture
def searcher() -> ColorSearcher:
    return ColorSearcher()


@pytest.fixture
def app(store: Store, searcher: ColorSearcher) -> FastAPI:
    """The application as it runs on one's own machine."""
    return create_app(store, searcher, ServeSettings(max_upload_bytes=2_000_000, max_upload_pixels=4_000_000))


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, base_url="http://127.0.0.1:8765") as made:
        yield made


@pytest.fixture
def upload(client: TestClient):
    """Sends a picture and returns what the server says of it."""

    def send(image: np.ndarray, name: str = "query.png") -> dict:
        answer = client.post("/api/pictures", files={"file": (name, png(image), "image/png")})
        assert answer.status_code == 201, answer.text
        return answer.json()

    return send


# ---------------------------------------------------------------------- the page in a browser

WIDE = {"width": 1280, "height": 860}


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The system's Chromium."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("no Chromium is installed (apt-get install chromium, or name one in $CHROMIUM)")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield started
        started.close()


class Served:
    """A server on a thread."""

    def __init__(self, app: Any) -> None:
        self._server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=1))
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> str:
        self._thread.start()
        while not self._server.started:
            self._thread.join(0.05)
        return f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}/"

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)


@pytest.fixture
def address(footage_folder: Path, tmp_path: Path) -> Iterator[str]:
    """Address of a server whose store may be changed."""
    shutil.copytree(footage_folder / "yard.store", tmp_path / "yard.store")
    store = open_store(str(tmp_path / "yard.store"))
    with Served(create_app(store, ColorSearcher())) as served:
        yield served
    store.close()


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Callable[..., Any]]:
    """Opens the page; fails where it breaks its own rules or loads anything from elsewhere."""
    contexts: list[Any] = []
    faults: list[str] = []

    def opened(viewport: dict[str, int] | None = None, refusals: tuple[int, ...] = (), **options: Any) -> Any:
        context = browser.new_context(viewport=viewport or WIDE, timezone_id="UTC", locale="en-GB", **options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: message.type == "error" and complain(message.text))
        page.on("request", lambda r: r.url.startswith((address, "blob:", "data:")) or faults.append(r.url))

        def complain(text: str) -> None:
            if not any(f"the server responded with a status of {status}" in text for status in refusals):
                faults.append(text)

        page.goto(address)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not faults


@pytest.fixture
def two_people(tmp_path: Path) -> Path:
    """Picture of a red and a blue person."""
    file = tmp_path / "two people.png"
    file.write_bytes(png(draw([(HUES["red"], 50, 60), (HUES["blue"], 180, 100)])))
    return file
