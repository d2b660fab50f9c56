"""What goes wrong around a store is one line that says what to do, and nothing is left broken."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

lancedb = pytest.importorskip("lancedb", reason="the extra [search] is not installed")

from person_search.search.lance import LanceStore  # noqa: E402
from person_search.search.maintenance import forget  # noqa: E402
from person_search.search.milvus import MilvusStore  # noqa: E402
from person_search.search.store import (  # noqa: E402
    Filter,
    SourceState,
    StoreError,
    StoreInfo,
    open_store,
    source_key,
    without_password,
)

INFO = StoreInfo("tiny", "ab" * 32, 16)


def _refused(uri: str, **options: Any) -> str:
    """Message of the error that opening gives, in one line."""
    with pytest.raises(StoreError) as error:
        open_store(uri, **options)
    message = str(error.value)
    assert "\n" not in message and len(message) < 400
    return message


@pytest.mark.parametrize("create", [False, True])
def test_a_folder_that_is_no_store_is_left_alone(tmp_path: Path, create: bool) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    options = {"info": INFO, "create": create}
    expected = "holds other files: give the store a folder of its own" if create else "is not a store of detections"
    assert expected in _refused(str(tmp_path), **options)
    assert "is a file: a store is a folder" in _refused(str(tmp_path / "photo.jpg"), **options)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]
    if not create:
        assert "does not exist: index footage into it first" in _refused(str(tmp_path / "none"), **options)
        assert not (tmp_path / "none").exists()


def test_a_database_of_another_program_is_no_store(tmp_path: Path) -> None:
    connection = lancedb.connect(tmp_path)
    for name in ("notes", "detections"):
        connection.create_table(name, [{"id": "a", "vector": [0.0, 1.0]}])
    assert "its table of detections names no model" in _refused(str(tmp_path), info=INFO, create=True)


def test_an_uri_of_nothing_known_or_without_a_model_is_refused(tmp_path: Path) -> None:
    assert "expected a folder, s3://, http:// or https://" in _refused("ftp://user:secret@host/x")
    assert "secret" not in _refused("ftp://user:secret@host/x")
    assert "without the model whose embeddings it will hold" in _refused(str(tmp_path / "new"), create=True)


def test_a_later_format_of_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="rows of format 2, this version of person_search reads 1"):
        open_store(str(tmp_path / "s"), info=StoreInfo("tiny", "ab" * 32, 16, format=2), create=True)


# ---------------------------------------------------------------------- servers


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def no_aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment without anything of AWS."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return monkeypatch


def test_a_bucket_out_of_reach_is_named_with_what_to_set(no_aws: pytest.MonkeyPatch) -> None:
    no_aws.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{_closed_port()}")
    no_aws.setenv("AWS_REGION", "us-east-1")
    assert _refused("s3://footage/x").startswith("s3://footage/x: no credentials: set AWS_ACCESS_KEY_ID")
    no_aws.setenv("AWS_ACCESS_KEY_ID", "someone")
    no_aws.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert "the server does not answer: check AWS_ENDPOINT_URL" in _refused("s3://footage/x", info=INFO, create=True)


def test_a_milvus_server_out_of_reach_is_named_without_its_password() -> None:
    pytest.importorskip("pymilvus", reason="the extra [search] is not installed")
    port = _closed_port()
    message = _refused(f"http://someone:secret@127.0.0.1:{port}/yard", info=INFO, create=True)
    assert (
        message
        == f"http://127.0.0.1:{port}/yard: the Milvus server does not answer: check host, port and whether it runs"
    )
    assert "no-name cannot name a collection" in _refused("http://127.0.0.1/no-name")
    assert "is no URI of a server" in _refused("http://127.0.0.1:port/yard")


# ---------------------------------------------------------------------- disks


@contextmanager
def _small_files_only(size: int) -> Iterator[None]:
    """Lets no file grow above a size, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_loses_nothing_that_was_written(tmp_path: Path, make_detections: Callable[..., Any]) -> None:
    store = open_store(str(tmp_path / "store"), info=INFO, create=True)
    store.upsert(make_detections(0, 100))
    with _small_files_only(20_000), pytest.raises(StoreError) as error:
        store.upsert(make_detections(100, 2000))
    assert str(error.value) == f"{store.uri}: the disk is full: free space and go on, what was written stays"
    assert store.count() == open_store(store.uri).count() == 100
    store.upsert(make_detections(100, 2000))
    assert store.count() == 2000


@pytest.fixture
def read_only_store(make_detections: Callable[..., Any]) -> Iterator[Path]:
    """A store in a folder that its user may read and not write."""
    parent = Path(tempfile.mkdtemp())
    folder = parent / "store"
    store = open_store(str(folder), info=INFO, create=True)
    store.upsert(make_detections(0, 100))
    store.close()
    parent.chmod(0o755)
    folders = [folder, *(path for path in folder.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # root may write everywhere
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        for path in folders:
            path.chmod(0o755)
        shutil.rmtree(parent)


def test_a_store_on_a_read_only_disk_is_read_and_not_written(
    read_only_store: Path, make_detections: Callable[..., Any]
) -> None:
    store = open_store(str(read_only_store), info=INFO)
    assert store.count(Filter(cameras=("gate",))) == 34 and store.sources() == []
    assert len(store.search([1.0] * 16, limit=5)[0]) == 5
    state = SourceState("/footage/a.mp4", "gate", "video", "", None, 0, 0.0, False)
    for write in (
        lambda: store.upsert(make_detections(0, 2)),
        lambda: store.set_source(state),
        lambda: store.optimize(),
        lambda: forget(store, Filter(cameras=("gate",))),
    ):
        with pytest.raises(StoreError, match="this user may not write here, or the disk is read-only"):
            write()
    assert store.count() == 100


# ---------------------------------------------------------------------- passwords


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("/footage/user:a@b.mp4", "/footage/user:a@b.mp4"),
        ("rtsp://cam/live", "rtsp://cam/live"),
        ("rtsp://user:pass@cam:554/live?x=1&y=", "rtsp://cam:554/live?x=1&y="),
        ("rtsp://user:p@ss@cam/live", "rtsp://cam/live"),
        ("rtsp://user:p/a@ss@cam/live", "rtsp://cam/live"),
        ("rtsp://user@cam/live", "rtsp://cam/live"),
        ("rtsp://cam/files/a@b", "rtsp://cam/files/a@b"),
        ("http://cam/video.cgi?user=admin&pwd=12&channel=1", "http://cam/video.cgi?user=admin&channel=1"),
        ("https://h/v.m3u8?Signature=abc", "https://h/v.m3u8"),
    ],
)
def test_urls_are_remembered_without_what_is_secret(url: str, clean: str) -> None:
    assert without_password(url) == clean
    assert source_key(url, "cam") == source_key(clean, "cam")


def test_no_byte_of_a_password_reaches_the_disk(tmp_path: Path, make_detections: Callable[..., Any]) -> None:
    live = "rtsp://someone:tr0ub4dor@cam/live"
    store = open_store(str(tmp_path / "store"), info=INFO, create=True)
    rows = make_detections(0, 20)
    store.upsert(rows.set_column(1, rows.schema.field("source"), [[live] * 20]))
    store.set_source(SourceState(live, "cam", "stream", "", None, 0, 0.0, False, error=f"cannot open {live}"))
    assert store.count(Filter(sources=("rtsp://cam/live",))) == 20
    files = [path for path in Path(store.uri).rglob("*") if path.is_file()]
    assert files and not any(b"tr0ub4dor" in path.read_bytes() for path in files)


def test_both_stores_have_all_that_the_protocol_asks_for() -> None:
    from person_search.search.store import Store

    asked = {name for name in vars(Store) if not name.startswith("_")}
    assert {"upsert", "search", "scan", "purge"} <= asked
    for kind in (LanceStore, MilvusStore):
        assert asked <= {name for base in kind.__mro__ for name in vars(base)}
