"""The page's API on footage that a real model has indexed."""

from __future__ import annotations

import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from person_search.search.index import IndexOptions, index
from person_search.search.searcher import PersonSearcher
from person_search.search.sources import find_sources
from person_search.search.store import open_store
from PIL import Image

testclient = pytest.importorskip("fastapi.testclient", reason="the extra [search] is not installed")


def test_indexed_persons_are_found_by_their_own_pictures(
    tmp_path: Path, searcher: PersonSearcher, textured: Callable, write_video: Callable, walk: Callable
) -> None:
    from person_search.search.serve.app import create_app

    footage = tmp_path / "footage"
    footage.mkdir()
    write_video(footage / "yard.avi", walk(1, 20))
    Image.fromarray(textured(0, 160, 200)).save(footage / "photo.png")
    store = open_store(str(tmp_path / "store"), info=searcher.info, create=True)
    index(searcher, store, find_sources([footage]), IndexOptions(every=Fraction(1, 5), progress=False))
    with testclient.TestClient(create_app(store, searcher), base_url="http://localhost") as client:
        with (footage / "photo.png").open("rb") as file:
            picture = client.post("/api/pictures", files={"file": ("photo.png", file, "image/png")}).json()
        assert picture["persons"]
        chosen = picture["persons"][0]["box"]
        for query in ({"person": 0}, {"box": chosen}):  # the detection's own embedding, and one made for a box
            answer = client.post("/api/search", json={"queries": [{"picture": picture["id"], **query}]}).json()
            best = answer["appearances"][0]
            assert best["source"]["name"] == "photo.png" and best["similarity"] > 0.999
            np.testing.assert_allclose(best["best"]["box"], chosen, atol=0.5)
        (video,) = [s for s in client.get("/api/sources").json()["sources"] if s["name"] == "yard.avi"]
        frame = client.get(f"/api/sources/{video['id']}/frames").json()
        shown = client.get(f"/api/detections/{frame['persons'][0]['id']}/frame")
        assert Image.open(io.BytesIO(shown.content)).size == (frame["width"], frame["height"])
        crop = client.get(f"/api/detections/{frame['persons'][0]['id']}/crop")
        assert crop.status_code == 200
        clip = client.get(f"/api/sources/{video['id']}/clip", params={"start": 0, "end": 1})
        assert clip.status_code == 200 and clip.headers["content-type"].startswith("video/")
    store.close()
