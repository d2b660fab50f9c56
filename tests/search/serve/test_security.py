"""What the server refuses: strangers, foreign pages and names, oversized and hostile pictures, paths."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from person_search.search.serve.app import create_app
from person_search.search.serve.settings import ServeSettings, allowed_hosts
from person_search.search.serve.uploads import RequestError, decode_picture, shown_name
from person_search.search.store import SourceState, Store
from PIL import Image

from .conftest import HUES, ColorSearcher, draw, png

TOKEN = "correct-horse-battery-staple"
HOME = "http://127.0.0.1:8765"


@pytest.fixture
def guarded(store: Store) -> Iterator[TestClient]:
    """A client of a server that others can reach, not signed in."""
    settings = ServeSettings(token=TOKEN, hosts=allowed_hosts("192.0.2.7", ["search.example"]), any_address=True)
    with TestClient(create_app(store, ColorSearcher(), settings), base_url="http://192.0.2.7:8765") as client:
        yield client


def upload_bytes(client: TestClient, data: bytes, name: str = "a.png", **headers: str):
    return client.post("/api/pictures", files={"file": (name, data, "image/png")}, headers=headers)


class TestToken:
    def test_nothing_of_the_footage_without_it(self, guarded: TestClient, app: FastAPI) -> None:
        answer = guarded.get("/", follow_redirects=False)
        assert answer.status_code == 303 and answer.headers["location"] == "/login"
        for path, operations in app.openapi()["paths"].items():
            for method in operations:
                if path == "/login":
                    continue
                answer = guarded.request(method, path.replace("{", "").replace("}", ""))
                assert answer.status_code == 401, (method, path)
                assert answer.json()["error"].startswith("a token is needed")
        assert guarded.get("/api/openapi.json").status_code == 401
        assert guarded.get("/login").status_code == 200
        assert guarded.get("/static/page.css").status_code == 200

    @pytest.mark.parametrize("wrong", ["", "x", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "ünïcode-token-of-length"])
    def test_wrong_ones(self, guarded: TestClient, wrong: str) -> None:
        header = f"Bearer {wrong}".encode("latin-1", "replace")
        assert guarded.get("/api/store", headers={"Authorization": header}).status_code == 401
        answer = guarded.post("/login", json={"token": wrong})
        assert answer.status_code == 401 and answer.json() == {"error": "this is not the token"}
        assert not guarded.cookies

    def test_header(self, guarded: TestClient) -> None:
        assert guarded.get("/api/store", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200

    def test_cookie_of_the_sign_in(self, guarded: TestClient) -> None:
        answer = guarded.post("/login", json={"token": TOKEN})
        assert answer.status_code == 204
        cookie = answer.headers["set-cookie"]
        assert "HttpOnly" in cookie and "SameSite=strict" in cookie and TOKEN not in cookie
        assert guarded.get("/api/store").status_code == 200
        name, value = next(iter(guarded.cookies.items()))
        guarded.cookies.clear()
        guarded.cookies.set(name, value[:-1] + ("0" if value[-1] != "0" else "1"))
        assert guarded.get("/api/store").status_code == 401

    def test_token_in_the_address_is_no_use(self, guarded: TestClient) -> None:
        assert guarded.get(f"/api/store?token={TOKEN}").status_code == 401


class TestOrigin:
    @pytest.mark.parametrize(
        "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8765", "192.0.2.7", "", "[::1", "a@b"]
    )
    def test_foreign_names_on_this_machine(self, client: TestClient, host: str) -> None:
        answer = client.get("/api/store", headers={"Host": host})
        assert answer.status_code == 421 and "--allow-host" in answer.json()["error"]

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9", "LOCALHOST:8765", "[::1]:8765", "localhost."])
    def test_own_names(self, client: TestClient, host: str) -> None:
        assert client.get("/api/store", headers={"Host": host}).status_code == 200

    def test_other_addresses_are_names_where_the_server_is_open(self, guarded: TestClient) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        for host, status in (("198.51.100.3:8765", 200), ("search.example", 200), ("rebound.example", 421)):
            assert guarded.get("/api/store", headers=headers | {"Host": host}).status_code == status

    @pytest.mark.parametrize(
        "headers",
        [
            {"Origin": "http://evil.example"},
            {"Origin": "null"},
            {"Origin": "http://127.0.0.1:9999"},
            {"Origin": "file://"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
        ],
    )
    def test_other_sites_cannot_change_or_search(self, client: TestClient, headers: dict[str, str]) -> None:
        for path, body in (("/api/forget", {"cameras": ["gate"], "confirm": True}), ("/api/search", {"queries": []})):
            assert client.post(path, json=body, headers=headers).status_code == 403
        assert upload_bytes(client, png(draw([])), **headers).status_code == 403

    def test_other_sites_cannot_embed_pictures(self, client: TestClient) -> None:
        assert (
            client.get("/api/store", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}).status_code
            == 403
        )
        link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
        assert client.get("/", headers=link).status_code == 200

    def test_own_page(self, client: TestClient) -> None:
        headers = {"Origin": HOME, "Sec-Fetch-Site": "same-origin"}
        assert client.post("/api/forget", json={"cameras": ["gate"]}, headers=headers).status_code == 200

    def test_forms_of_other_sites_are_no_json(self, client: TestClient) -> None:
        answer = client.post("/api/forget", content='{"cameras": ["gate"]}', headers={"Content-Type": "text/plain"})
        assert answer.status_code == 422


def test_headers_of_every_answer(client: TestClient) -> None:
    for path in ("/", "/static/main.js", "/api/store", "/api/none", "/login"):
        headers = client.get(path).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert (
            policy["default-src"] == "'none'" and policy["script-src"] == "'self'" and policy["style-src"] == "'self'"
        )
        assert policy["frame-ancestors"] == "'none'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert headers["referrer-policy"] == "no-referrer"
    assert client.get("/", headers={"Host": "evil.example"}).headers["x-frame-options"] == "DENY"


def test_pages_hold_no_inline_script_and_nothing_remote() -> None:
    import person_search.search.serve as serve

    folder = Path(serve.__file__).parent
    for file in [*folder.glob("templates/*"), *folder.glob("static/*")]:
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text and "https://" not in text, file
        assert "innerHTML" not in text and "insertAdjacentHTML" not in text and "eval(" not in text, file
        if file.suffix == ".html":
            assert "<script>" not in text and " onclick" not in text and "javascript:" not in text, file
            assert "style=" not in text and "<style" not in text, file


class TestUploads:
    def test_oversized_body_is_cut_off(self, client: TestClient, app: FastAPI) -> None:
        limit = app.state.desk.settings.max_upload_bytes
        answer = upload_bytes(client, b"\xff" * (limit + 1))
        assert answer.status_code == 413 and answer.json()["error"].startswith("the picture is larger than 2 MB")
        assert upload_bytes(client, b"\xff" * (limit + 100_000)).status_code == 413

    def test_oversized_body_without_its_length(self, client: TestClient, app: FastAPI) -> None:
        sent = 0

        def body() -> Iterator[bytes]:
            nonlocal sent
            yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
            for _ in range(100):
                sent += 100_000
                yield bytes(100_000)
            yield b"\r\n--x--\r\n"

        answer = client.post(
            "/api/pictures", content=body(), headers={"Content-Type": "multipart/form-data; boundary=x"}
        )
        assert answer.status_code == 413
        long = b'{"queries": [' + b" " * 300_000 + b"]}"
        answer = client.post("/api/search", content=iter([long]), headers={"Content-Type": "application/json"})
        assert answer.status_code == 413

    def test_lying_length(self, client: TestClient) -> None:
        answer = client.post("/api/search", content=b"{}", headers={"Content-Length": "-5"})
        assert answer.status_code == 413

    def test_decompression_bomb_is_not_unpacked(self, client: TestClient) -> None:
        answer = upload_bytes(client, bomb(60_000, 60_000))
        assert (
            answer.status_code == 413
            and answer.json()["error"] == "the picture has more than 4 million pixels; send a smaller one"
        )
        assert upload_bytes(client, bomb(2_100, 2_000)).status_code == 413

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"no picture",
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n(w) (/tmp/pwned) file\nshowpage\n",
            b'<svg xmlns="http://www.w3.org/2000/svg" width="100" height="100"><script>alert(1)</script></svg>',
            b"\x80\x04\x95\x1f\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94\x8c\x02id\x94\x85\x94R\x94.",
            png(draw([(0.5, 10, 10)]))[:200],
        ],
        ids=["empty", "text", "postscript", "svg", "pickle", "truncated"],
    )
    def test_what_is_no_picture(self, client: TestClient, data: bytes) -> None:
        answer = upload_bytes(client, data)
        assert answer.status_code == 415
        assert answer.json() == {
            "error": "the file is not a picture that can be read; send a JPEG, PNG, WebP or BMP file"
        }

    @pytest.mark.parametrize("form", ["TIFF", "GIF", "PPM", "TGA", "ICO", "PDF"])
    def test_other_decoders_are_not_reached(self, form: str) -> None:
        stream = io.BytesIO()
        Image.new("RGB", (64, 64)).save(stream, form)
        with pytest.raises(RequestError, match="send a JPEG"):
            decode_picture(stream.getvalue(), 1_000_000)

    def test_tiny_picture(self, client: TestClient) -> None:
        answer = upload_bytes(client, png(np.zeros((8, 100, 3), np.uint8)))
        assert (
            answer.status_code == 422
            and answer.json()["error"] == "the picture has 100 x 8 pixels; at least 16 a side are needed"
        )

    @pytest.mark.parametrize(
        ("name", "shown"),
        [
            ("../../etc/passwd", "passwd"),
            ("C:\\Windows\\a.png", "a.png"),
            ("a\x00b\nc\u202egnp.png", "abcgnp.png"),
            ("", "picture"),
            ("...///", "..."),
            ("<script>.png", "<script>.png"),
            ("x" * 500, "x" * 80),
        ],
    )
    def test_hostile_names_are_only_shown(self, name: str, shown: str) -> None:
        assert shown_name(name) == shown

    def test_kinds_of_pictures(self) -> None:
        people = draw([(HUES["red"], 50, 60)])
        for form in ("JPEG", "PNG", "WEBP", "BMP"):
            stream = io.BytesIO()
            Image.fromarray(people).save(stream, form)
            assert decode_picture(stream.getvalue(), 100_000).shape == people.shape
        turned = Image.fromarray(np.rot90(people, 1))
        turned.getexif()[0x0112] = 6  # lies on its side
        stream = io.BytesIO()
        exif = turned.getexif()
        turned.save(stream, "PNG", exif=exif)
        np.testing.assert_array_equal(decode_picture(stream.getvalue(), 100_000), people)
        grey = (np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16)
        stream = io.BytesIO()
        Image.fromarray(grey).save(stream, "PNG")
        np.testing.assert_array_equal(decode_picture(stream.getvalue(), 100_000)[..., 0], grey >> 8)
        stream = io.BytesIO()
        Image.new("P", (64, 32)).save(stream, "PNG")
        assert decode_picture(stream.getvalue(), 100_000).shape == (32, 64, 3)
        stream = io.BytesIO()
        Image.new("RGB", (4000, 1000)).save(stream, "JPEG")
        assert max(decode_picture(stream.getvalue(), 10_000_000).shape) <= 3000


def bomb(width: int, height: int) -> bytes:
    """PNG of a few bytes whose header promises a huge picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


class TestPaths:
    @pytest.mark.parametrize(
        "path",
        [
            "/static/../app.py",
            "/static/%2e%2e/app.py",
            "/static/..%2fapp.py",
            "/static//etc/passwd",
            "/static/%2fetc%2fpasswd",
            "/api/sources/..%2f..%2fetc%2fpasswd/video",
            "/api/sources/%2Fetc%2Fpasswd/video",
            "/api/sources/0123456789abcdeg/video",
            "/api/detections/..%2f..%2fetc%2fpasswd/crop",
            "/api/detections/' OR 1=1 --/crop",
            "/api/tracklets/' OR 1=1 --",
            "/api/pictures/..%2f..%2f",
        ],
    )
    def test_paths_lead_nowhere(self, client: TestClient, path: str) -> None:
        answer = client.get(path)
        assert answer.status_code in (404, 405, 422), path
        assert "root:" not in answer.text and "import " not in answer.text

    def test_messages_tell_no_folders(self, client: TestClient, footage_folder: Path) -> None:
        texts = [client.get(path).text for path in ("/api/store", "/api/sources", "/api/none")]
        (source,) = client.get("/api/sources", params={"camera": "gate"}).json()["sources"]
        person = client.get(f"/api/sources/{source['id']}/frames").json()["persons"][0]["id"]
        answer = client.post("/api/search", json={"queries": [{"detection": person}]})
        texts.append(answer.text)
        for form in ("jsonl", "csv", "html"):
            texts.append(client.post(f"/api/answers/{answer.json()['id']}/export", json={"format": form}).text)
        assert all(str(footage_folder) not in text for text in texts)

    def test_row_whose_source_is_not_listed_is_not_opened(self, store: Store) -> None:
        """A store that somebody has tampered with must not hand out other files."""
        opened = []

        class Tampered:
            def __getattr__(self, name: str):
                return getattr(store, name)

            def sources(self) -> list[SourceState]:
                return [state for state in store.sources() if state.camera != "gate"]

        with TestClient(create_app(Tampered(), reader=opened.append), base_url=HOME) as client:
            gate = next(batch["id"][0].as_py() for batch in store.scan() if batch["camera"][0].as_py() == "gate")
            answer = client.get(f"/api/detections/{gate}/crop")
        assert answer.status_code == 404 and answer.json() == {"error": "this source is not in the store"}
        assert not opened

    @pytest.mark.parametrize("name", ["passwd.mp4", "list.m3u8", "list.mp4"])
    def test_listed_file_that_is_no_video_is_not_handed_out(self, store: Store, tmp_path: Path, name: str) -> None:
        secret = tmp_path / "secret.txt"
        secret.write_text("root:x:0:0")
        file = tmp_path / name
        playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{secret}\n#EXT-X-ENDLIST\n"
        file.write_text(playlist if "list" in name else "root:x:0:0")

        class Listing:
            def __getattr__(self, name: str):
                return getattr(store, name)

            def sources(self) -> list[SourceState]:
                return [SourceState(str(file), "gate", "video", "", None, 0, 0, True)]

        with TestClient(create_app(Listing()), base_url=HOME) as client:
            (source,) = client.get("/api/sources").json()["sources"]
            for path in ("video", "clip?start=0&end=5"):
                answer = client.get(f"/api/sources/{source['id']}/{path}")
                assert answer.status_code in (404, 415), answer.text
                assert "root" not in answer.text
            assert client.get(f"/api/sources/{source['id']}/playback").json()["mode"] == "none"

    def test_names_as_markup(self, client: TestClient) -> None:
        """Names are text in JSON; the page sets them as text."""
        sources = client.get("/api/sources", params={"camera": "photos"}).json()["sources"]
        assert "<img src=x onerror=alert(1)>.png" in [source["name"] for source in sources]
        for path in ("/", "/login"):
            assert "onerror" not in client.get(path).text
