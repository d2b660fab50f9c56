"""Fixtures of the tests of person search in footage: rows of a store, a tiny model that detects something, footage."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from person_search import add_ssl_config
from person_search.search.searcher import PersonSearcher
from person_search.search.store import Store, open_store

DIMENSION = 16
START = datetime(2026, 3, 1, 8, tzinfo=timezone.utc)


def _detections(first: int, last: int, *, seed: int = 0, dimension: int = DIMENSION) -> Any:
    """Rows first..last-1 of an endless list of detections: three cameras of two sources, each fifth of unknown time."""
    import pyarrow as pa
    from person_search.search.store import detection_id, detections_schema, tracklet_id

    numbers = np.arange(first, last)
    vectors = np.stack([np.random.default_rng([seed, k]).normal(size=dimension) for k in numbers]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cameras = [("gate", 'it\'s a "yard"', "Straße\\1")[k % 3] for k in numbers]
    sources = [f"/footage/{'ab'[k % 2]}.mp4" for k in numbers]
    named = list(zip(sources, cameras, numbers.tolist(), strict=True))
    columns: dict[str, Any] = {
        "id": [detection_id(source, camera, k, 0) for source, camera, k in named],
        "source": sources,
        "camera": cameras,
        "time": [None if k % 5 == 0 else START + timedelta(seconds=int(k)) for k in numbers],
        "offset": numbers / 2,
        "frame": numbers,
        "x0": numbers % 7,
        "y0": numbers % 11,
        "x1": numbers % 7 + 20.5,
        "y1": numbers % 11 + 40.25,
        "width": np.full(len(numbers), 640),
        "height": np.full(len(numbers), 480),
        "score": np.full(len(numbers), 0.75),
        "tracklet": [tracklet_id(source, camera, k // 12) for source, camera, k in named],
        "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dimension),
    }
    schema = detections_schema(dimension)
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in schema}, schema=schema)


@pytest.fixture(scope="session")
def make_detections() -> Callable[..., Any]:
    """`make_detections(first, last)`: a table of those of an endless list of detections, always the same."""
    return _detections


def _textured(seed: int, height: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 10 + 1, width // 10 + 1, 3), dtype=np.uint8)
    return np.kron(coarse, np.ones((10, 10, 1), np.uint8))[:height, :width].copy()


@pytest.fixture(scope="session")
def textured() -> Callable[[int, int, int], np.ndarray]:
    """Makes a picture of colored squares from a seed, a height and a width."""
    return _textured


@pytest.fixture(scope="session")
def tiny_cfg(repository: Path) -> CfgNode:
    """A ResNet-10 of a quarter of its width with 16-dimensional embeddings, on the CPU."""
    cfg = get_cfg()
    add_ssl_config(cfg)
    cfg.merge_from_file(str(repository / "projects" / "SSL" / "configs" / "synthetic.yaml"))
    cfg.merge_from_list([
        *("MODEL.DEVICE", "cpu", "MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8),
        *("MODEL.REID_HEAD.EMBEDDING_DIM", 16, "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 4),
        *("INPUT.MIN_SIZE_TEST", 144, "INPUT.MAX_SIZE_TEST", 256, "MODEL.RPN.POST_NMS_TOPK_TEST", 30),
        *("MODEL.RPN.PRE_NMS_TOPK_TEST", 200, "TEST.DETECTIONS_PER_IMAGE", 6),
    ])  # fmt: skip
    cfg.freeze()
    return cfg


@pytest.fixture(scope="session")
def checkpoint(tiny_cfg: CfgNode, balance: Callable, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of random weights, with its configuration, that detects some of what it sees."""
    torch.manual_seed(0)
    model = build_model(tiny_cfg)
    balance(model, torch.from_numpy(_textured(0, 160, 200).transpose(2, 0, 1).copy()))
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save({"model": model.state_dict(), "config": tiny_cfg.dump()}, path)
    return path


@pytest.fixture(scope="session")
def searcher(checkpoint: Path) -> PersonSearcher:
    """The searcher of the tiny model."""
    return PersonSearcher(None, checkpoint)


def _write_video(
    path: Path,
    images: Sequence[np.ndarray],
    *,
    fps: int = 10,
    codec: str = "mpeg4",
    times: Sequence[int] | None = None,
    gop: int = 12,
    b_frames: int = 0,
    metadata: dict[str, str] | None = None,
) -> Path:
    with av.open(str(path), "w") as container:
        container.metadata.update(metadata or {})
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = *images[0].shape[:2], "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, b_frames
        stream.time_base = stream.codec_context.time_base = Fraction(1, fps)
        for number, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = (number if times is None else times[number]), Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def write_video() -> Callable[..., Path]:
    """Writes RGB pictures as a video file; `times` are their places on the clock of `fps` ticks a second."""
    return _write_video


@pytest.fixture(scope="session")
def walk() -> Callable[[int, int], list[np.ndarray]]:
    """Makes pictures (160, 200) in which a colored patch moves over a still background, from a seed and a number."""

    def make(seed: int, count: int) -> list[np.ndarray]:
        ground, patch = _textured(seed, 160, 200), _textured(seed + 100, 90, 40)
        images = []
        for step in range(count):
            image = ground.copy()
            left = 5 + (3 * step) % 150
            image[40:130, left : left + 40] = patch
            images.append(image)
        return images

    return make


@pytest.fixture
def store(tmp_path: Path, searcher: PersonSearcher) -> Iterator[Store]:
    """An empty store of the tiny model in a folder."""
    opened = open_store(str(tmp_path / "store"), info=searcher.info, create=True)
    yield opened
    opened.close()


# ---------------------------------------------------------------------- servers, which end with the tests


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for(url: str, process: subprocess.Popen[bytes], seconds: float) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError as error:
            if process.poll() is not None or time.monotonic() > end:
                raise TimeoutError(f"{url} did not answer within {seconds:.0f} s ({error})") from error
            time.sleep(0.1)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def s3_bucket() -> Iterator[str]:
    """A bucket of a server that speaks S3."""
    pytest.importorskip("moto", reason="moto, which plays S3, is not installed")
    port = _free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "someone")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", address)
        try:
            _wait_for(f"{address}/moto-api/data.json", process, 60)
            urllib.request.urlopen(urllib.request.Request(f"{address}/footage", method="PUT")).close()
            yield "s3://footage"
        finally:
            _end(process)


@pytest.fixture(scope="module")
def milvus_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A standalone Milvus server."""
    milvus = pytest.importorskip("milvus", reason="the package milvus, which holds a server, is not installed")
    config = milvus.MilvusServerConfig(data_dir=str(tmp_path_factory.mktemp("milvus")))
    server = milvus.MilvusServer(config, wait_for_started=False)
    try:
        server.start()
        try:
            _wait_for(f"http://127.0.0.1:{server.webservice_port}/healthz", server.server_proc, 120)
        except TimeoutError as error:
            logs = sorted(Path(server.config.base_data_dir, "logs").glob("milvus-std*.log"))
            tail = " ".join(log.read_text(errors="replace")[-300:] for log in logs)
            pytest.skip(f"the Milvus server of the package milvus does not run here: {error} {tail}")
        yield f"http://127.0.0.1:{server.listen_port}"
    finally:
        if server.server_proc is not None:
            server.server_proc.kill()  # its orderly end takes long, and nobody needs its data any more
        server.stop()


@pytest.fixture(scope="module", params=["folder", "s3", "milvus"])
def new_uri(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], str]:
    """Gives the URI of a store that does not exist yet, each time another one."""
    if request.param == "folder":
        return lambda: str(tmp_path_factory.mktemp("stores") / "store")
    base = request.getfixturevalue({"s3": "s3_bucket", "milvus": "milvus_server"}[request.param])
    return lambda: f"{base}/s{uuid.uuid4().hex[:12]}"
