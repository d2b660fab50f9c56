"""The API: queries, appearances, pictures, exports and forgetting."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import threading
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from person_search.search import query
from person_search.search.calibration import calibrate
from person_search.search.maintenance import set_retention
from person_search.search.serve.answers import percent
from person_search.search.serve.app import create_app
from person_search.search.store import open_store
from PIL import Image

from .conftest import HUES, PERSON, START, ColorSearcher, draw, png


def search(client: TestClient, *queries: dict, **options: object) -> dict:
    answer = client.post("/api/search", json={"queries": list(queries), **options})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_store_summary(client: TestClient) -> None:
    summary = client.get("/api/store").json()
    assert summary["name"] == "yard.store"
    assert [camera["name"] for camera in summary["cameras"]] == ["gate", "live", "photos", "yard"]
    gate = summary["cameras"][0]
    assert gate["first"] == "2024-05-01T12:00:00Z" and gate["last"] == "2024-05-01T12:00:12Z"
    assert summary["sources"] == 8 and summary["unfinished"] == 1 and summary["damaged"] == 0
    assert summary["can_embed"] and summary["dimension"] == 32


def test_person_is_found_on_both_cameras_and_nowhere_else(client: TestClient, upload) -> None:
    picture = upload(draw([(HUES["red"], 50, 60)]))
    assert picture["persons"][0]["box"] == [50, 60, 50 + PERSON[0], 60 + PERSON[1]]
    answer = search(client, {"picture": picture["id"]})
    assert answer["found"] and answer["statement"] == "2 likely appearances on 2 cameras."
    likely = [one for one in answer["appearances"] if one["verdict"] == "likely"]
    assert {one["camera"] for one in likely} == {"gate", "yard"}
    gate = next(one for one in likely if one["camera"] == "gate")
    assert (gate["start"], gate["end"]) == ("2024-05-01T12:00:00Z", "2024-05-01T12:00:06Z")
    assert gate["source"]["name"] == "gate.mp4" and gate["detections"] == 31
    similarities = [one["similarity"] for one in answer["appearances"]]
    assert similarities == sorted(similarities, reverse=True)


def test_absent_person_is_said_to_be_absent(client: TestClient, upload) -> None:
    picture = upload(draw([(3 / 13, 50, 60)]))
    answer = search(client, {"picture": picture["id"]})
    assert not answer["found"]
    assert answer["statement"].startswith("Not there: no appearance is likely this person. The closest has")


def test_several_persons_need_a_choice(client: TestClient, upload) -> None:
    picture = upload(draw([(HUES["red"], 50, 60), (HUES["blue"], 150, 60)]))
    answer = client.post("/api/search", json={"queries": [{"picture": picture["id"]}]})
    assert answer.status_code == 422
    assert answer.json()["error"] == "2 persons were detected in query.png: give `person` or draw a `box`"
    blue = next(i for i, person in enumerate(picture["persons"]) if person["box"][0] == 150)
    assert search(client, {"picture": picture["id"], "person": blue})["appearances"][0]["camera"] == "gate"
    answer = client.post("/api/search", json={"queries": [{"picture": picture["id"], "person": 2}]})
    assert answer.json()["error"] == "person: query.png has 2 detected persons, counted from 0"


def test_drawn_box_is_cut_to_the_picture_and_embedded_once(client: TestClient, upload, searcher: ColorSearcher) -> None:
    picture = upload(draw([(HUES["red"], 0, 60), (HUES["green"], 150, 60)]))
    query = {"picture": picture["id"], "box": [-30, 60, 24, 120]}
    for _ in range(2):
        answer = search(client, query)
    assert answer["queries"][0]["box"] == [0, 60, 24, 120]
    assert searcher.embedded == [(0, 60, 24, 120)]
    assert answer["found"]


@pytest.mark.parametrize("box", [[10, 10, 12, 200], [400, 10, 500, 100], [50, 50, 20, 20]])
def test_box_without_content_is_refused(client: TestClient, upload, box: list[float]) -> None:
    picture = upload(draw([]))
    assert picture["persons"] == []
    answer = client.post("/api/search", json={"queries": [{"picture": picture["id"], "box": box}]})
    assert answer.status_code == 422 and answer.json()["error"].startswith("box: x0, y0, x1, y1 =")


def test_indexed_person_is_found_elsewhere(client: TestClient) -> None:
    (source,) = client.get("/api/sources", params={"camera": "gate"}).json()["sources"]
    frame = client.get(f"/api/sources/{source['id']}/frames", params={"at": 3.0}).json()
    assert (frame["frame"], frame["offset"], len(frame["persons"])) == (15, 3.0, 2)
    answer = search(client, {"detection": frame["persons"][0]["id"]})
    own = [one for one in answer["appearances"] if one["is_query"]]
    assert len(own) == 1 and own[0]["camera"] == "gate"
    assert answer["statement"] == "1 likely appearance on 1 camera."


def test_person_of_one_appearance_alone_is_not_found_elsewhere(client: TestClient) -> None:
    (source,) = client.get("/api/sources", params={"camera": "yard"}).json()["sources"]
    frame = client.get(f"/api/sources/{source['id']}/frames", params={"frame": 0}).json()
    answer = search(client, {"detection": frame["persons"][0]["id"]}, cameras=["yard", "gate"])
    assert answer["appearances"][0]["is_query"] and not answer["found"]
    assert answer["statement"].startswith("Not there: no appearance elsewhere is likely this person.")


def test_store_is_calibrated_once(client: TestClient, upload, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(query, "calibrate", lambda store: calls.append(store) or calibrate(store))
    picture = {"picture": upload(draw([(HUES["red"], 50, 60)]))["id"]}
    assert search(client, picture)["found"] and search(client, picture, top=3)["found"]
    assert len(calls) == 1


def test_query_pictures_are_forgotten_when_asked(client: TestClient, upload) -> None:
    picture = upload(draw([(HUES["red"], 50, 60)]), "../../me.png")
    assert picture["name"] == "me.png"
    shown = client.get(f"/api/pictures/{picture['id']}")
    assert Image.open(io.BytesIO(shown.content)).size == (320, 240)
    assert client.delete("/api/pictures").status_code == 204
    assert client.get(f"/api/pictures/{picture['id']}").status_code == 404
    answer = client.post("/api/search", json={"queries": [{"picture": picture["id"]}]})
    assert answer.status_code == 404 and "upload it again" in answer.json()["error"]


def test_filters(client: TestClient, upload) -> None:
    query = {"picture": upload(draw([(HUES["red"], 50, 60)]))["id"]}
    assert {one["camera"] for one in search(client, query, cameras=["yard"])["appearances"]} == {"yard"}
    later = (START + timedelta(minutes=5)).isoformat()
    assert {one["camera"] for one in search(client, query, since=later)["appearances"]} == {"yard"}
    assert {one["camera"] for one in search(client, query, until=later)["appearances"]} == {"gate"}
    nothing = search(client, query, since=(START + timedelta(days=1)).isoformat())
    assert nothing["searched"] == 0 and nothing["statement"].startswith("Nothing was searched")
    for wrong, text in (
        ({"cameras": ["roof"]}, "cameras: 'roof' is not a camera of this store"),
        ({"since": later, "until": later}, "until: has to be later than since"),
        ({"since": "2024-05-01T12:00:00"}, "since: input should have timezone info"),
        ({"top": 0}, "top: input should be greater than or equal to 1"),
        ({"topp": 3}, "topp: extra inputs are not permitted"),
    ):
        answer = client.post("/api/search", json={"queries": [query], **wrong})
        assert answer.status_code == 422 and answer.json()["error"] == text


def test_marks_refine_the_search(client: TestClient, upload) -> None:
    query = {"picture": upload(draw([(0.99, 50, 60)]))["id"]}
    red = [one for one in search(client, query)["appearances"] if one["similarity"] > 0.5]
    assert [one["detections"] for one in red] == [31, 36]
    refined = search(client, query, right=[red[1]["best"]["id"]])["appearances"]
    assert refined[0]["similarity"] > red[0]["similarity"] + 0.05
    assert {one["camera"] for one in refined if one["mark"] == "right"} == {"yard"}
    # Who looks more like somebody marked wrong than like the query is left out.
    without = search(client, query, wrong=[red[0]["best"]["id"]])
    assert {one["tracklet"] for one in without["appearances"]}.isdisjoint(one["tracklet"] for one in red)
    assert not without["found"]


def test_pictures_of_a_detection(client: TestClient) -> None:
    (source,) = client.get("/api/sources", params={"camera": "yard"}).json()["sources"]
    frame = client.get(f"/api/sources/{source['id']}/frames", params={"at": 5}).json()
    green = max(frame["persons"], key=lambda person: person["box"][1])
    crop = Image.open(io.BytesIO(client.get(f"/api/detections/{green['id']}/crop").content))
    red_, green_, blue_ = np.asarray(crop)[crop.height // 2, crop.width // 2]
    assert green_ > red_ + 60 and green_ > blue_ + 60
    whole = client.get(f"/api/detections/{green['id']}/frame")
    assert Image.open(io.BytesIO(whole.content)).size == (320, 240)
    assert client.get(f"/api/detections/{green['id']}/persons").json() == frame


def test_track_follows_the_person(client: TestClient, upload) -> None:
    answer = search(client, {"picture": upload(draw([(HUES["blue"], 50, 60)]))["id"]})
    track = client.get(f"/api/tracklets/{answer['appearances'][0]['tracklet']}").json()
    assert [point["offset"] for point in track["points"]] == pytest.approx([2 + number / 5 for number in range(41)])
    lefts = [point["box"][0] for point in track["points"]]
    assert lefts == sorted(lefts) and lefts[-1] - lefts[0] > 200


def test_unknown_ids_are_not_found(client: TestClient) -> None:
    unknown = "0123456789abcdef"
    for path in (
        f"sources/{unknown}/frames",
        f"sources/{unknown}/video",
        f"sources/{unknown}/playback",
        f"sources/{unknown}/clip?start=0&end=1",
        f"detections/{unknown}:0000000000:0000/crop",
        f"detections/{unknown}:0000000000:0000/persons",
        f"tracklets/{unknown}:000000",
        "pictures/0123456789abcdef01234567",
    ):
        answer = client.get(f"/api/{path}")
        assert answer.status_code == 404, path
        assert set(answer.json()) == {"error"}


def test_exports(client: TestClient, upload) -> None:
    answer = search(client, {"picture": upload(draw([(HUES["yellow"], 50, 60)]))["id"]})
    best = answer["appearances"][0]["best"]["id"]
    files = {}
    for form in ("jsonl", "csv", "html"):
        reply = client.post(f"/api/answers/{answer['id']}/export", json={"format": form, "right": [best]})
        assert reply.status_code == 200
        assert reply.headers["content-disposition"] == f'attachment; filename="appearances.{form}"'
        files[form] = reply.content.decode("utf-8-sig")
    lines = [json.loads(line) for line in files["jsonl"].splitlines()]
    table = list(csv.DictReader(io.StringIO(files["csv"])))
    assert len(lines) == len(table) == len(answer["appearances"])
    assert lines[0]["mark"] == table[0]["mark"] == "right" and lines[1]["mark"] is None
    assert [float(row["similarity"]) for row in table] == [line["similarity"] for line in lines]
    assert files["html"].count("data:image/jpeg;base64,") == len(lines)
    assert f"1 {lines[0]['verdict']}, marked right</p>" in files["html"]
    assert "<img src=x" not in files["html"] and "&lt;img src=x onerror=alert(1)&gt;.png" in files["html"]


def test_a_sheet_shows_who_was_picked_from_the_footage(client: TestClient) -> None:
    (source,) = client.get("/api/sources", params={"camera": "gate"}).json()["sources"]
    person = client.get(f"/api/sources/{source['id']}/frames").json()["persons"][0]["id"]
    answer = search(client, {"detection": person})
    sheet = client.post(f"/api/answers/{answer['id']}/export", json={"format": "html"}).text
    assert sheet.count("data:image/jpeg;base64,") == len(answer["appearances"]) + 1
    assert sheet.count('<li class="query">') == 1 and "http" not in sheet.replace("http-equiv", "")


def test_forgetting_counts_first_and_leaves_no_copies(footage_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(footage_folder / "yard.store", tmp_path / "copy.store")
    store = open_store(str(tmp_path / "copy.store"))
    with TestClient(create_app(store, ColorSearcher()), base_url="http://localhost") as client:
        (source,) = client.get("/api/sources", params={"camera": "gate"}).json()["sources"]
        person = client.get(f"/api/sources/{source['id']}/frames").json()["persons"][0]
        crop = f"/api/detections/{person['id']}/crop"
        assert client.get(crop).status_code == 200
        answer = search(client, {"detection": person["id"]})
        before = store.count()
        selection = {"tracklets": [person["tracklet"]]}
        assert client.post("/api/forget", json=selection).json() == {"matching": 31, "deleted": 0}
        assert store.count() == before
        assert client.post("/api/forget", json={**selection, "confirm": True}).json()["deleted"] == 31
        assert store.count() == before - 31
        assert client.get(crop).status_code == 404
        assert client.post(f"/api/answers/{answer['id']}/export", json={"format": "csv"}).status_code == 404
        assert client.post("/api/forget", json={"cameras": ["yard"], "confirm": True}).json()["deleted"] == 77
        until = (START + timedelta(days=1)).isoformat()
        assert client.post("/api/forget", json={"before": until}).json()["matching"] == 41
        for wrong in ({}, {"before": until, "cameras": ["gate"]}):
            assert client.post("/api/forget", json=wrong).status_code == 422
    store.close()


def test_without_weights_indexed_persons_are_searched_for(store) -> None:
    with TestClient(create_app(store), base_url="http://localhost") as client:
        assert not client.get("/api/store").json()["can_embed"]
        answer = client.post("/api/pictures", files={"file": ("a.png", b"x", "image/png")})
        assert answer.status_code == 409 and "runs without weights" in answer.json()["error"]
        (source,) = client.get("/api/sources", params={"camera": "gate"}).json()["sources"]
        person = client.get(f"/api/sources/{source['id']}/frames").json()["persons"][0]
        assert search(client, {"detection": person["id"]})["found"]


def test_missing_footage_is_said_in_one_line_without_its_folder(footage_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(footage_folder / "yard.store", tmp_path / "copy.store")
    store = open_store(str(tmp_path / "copy.store"))
    (state,) = [one for one in store.sources() if one.camera == "gate"]

    def missing(row: dict) -> np.ndarray:
        from person_search.errors import DatasetError

        raise DatasetError(f"{state.source}: the video is missing;\nrestore it")

    with TestClient(create_app(store, reader=missing), base_url="http://localhost") as client:
        (source,) = client.get("/api/sources", params={"camera": "gate"}).json()["sources"]
        person = client.get(f"/api/sources/{source['id']}/frames").json()["persons"][0]
        answer = client.get(f"/api/detections/{person['id']}/crop")
        assert answer.status_code == 404
        assert answer.json()["error"] == "gate.mp4: the video is missing; restore it"
    store.close()


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.5, "50 %"), (0.0312, "3.1 %"), (0.00012, "0.012 %"), (0.0, "less than 0.01 %"), (None, "an unknown share")],
)
def test_shares_in_words(share: float | None, text: str) -> None:
    assert percent(share) == text


def test_what_is_too_old_goes_when_the_page_starts(footage_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(footage_folder / "yard.store", tmp_path / "copy.store")
    store = open_store(str(tmp_path / "copy.store"))
    set_retention(store, 30)
    with TestClient(create_app(store), base_url="http://localhost") as client:
        for _ in range(200):
            summary = client.get("/api/store").json()
            if summary["cameras"][0]["detections"] == 0:
                break
            time.sleep(0.05)
    assert summary["retention_days"] == 30
    assert {camera["name"]: camera["detections"] for camera in summary["cameras"]} == {
        **{"gate": 0, "live": 0, "yard": 0},
        **{"photos": 49},  # of unknown time, indexed just now
    }
    assert summary["cameras"][0]["sample"] is None
    store.close()


def test_long_search_keeps_nobody_waiting(store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches run on threads: the page answers others meanwhile."""
    began, end = threading.Event(), threading.Event()

    class Slow(ColorSearcher):
        def detect(self, image: np.ndarray):
            began.set()
            assert end.wait(60)
            return super().detect(image)

    with TestClient(create_app(store, Slow()), base_url="http://localhost") as client:
        picture = png(draw([(HUES["red"], 50, 60)]))
        answers = []
        thread = threading.Thread(
            target=lambda: answers.append(client.post("/api/pictures", files={"file": ("a.png", picture, "image/png")}))
        )
        thread.start()
        assert began.wait(60)
        assert client.get("/api/store").status_code == 200  # while the other request is still at work
        assert not answers
        end.set()
        thread.join(60)
    assert answers[0].status_code == 201


def test_answers_fit_the_openapi_document(client: TestClient, app: FastAPI, upload) -> None:
    """The document describes every route with the model that its answer fits."""
    document = client.get("/api/openapi.json").json()
    picture = upload(draw([(HUES["red"], 50, 60)]))
    answer = search(client, {"picture": picture["id"]})
    (source,) = client.get("/api/sources", params={"camera": "gate"}).json()["sources"]
    best = answer["appearances"][0]
    samples = {
        "/api/store": client.get("/api/store"),
        "/api/sources": client.get("/api/sources"),
        "/api/sources/{source}/frames": client.get(f"/api/sources/{source['id']}/frames"),
        "/api/sources/{source}/playback": client.get(f"/api/sources/{source['id']}/playback"),
        "/api/detections/{detection}/persons": client.get(f"/api/detections/{best['best']['id']}/persons"),
        "/api/tracklets/{tracklet}": client.get(f"/api/tracklets/{best['tracklet']}"),
        "/api/search": client.post("/api/search", json={"queries": [{"picture": picture["id"]}]}),
        "/api/pictures": client.post("/api/pictures", files={"file": ("a.png", png(draw([])), "image/png")}),
        "/api/forget": client.post("/api/forget", json={"cameras": ["gate"]}),
    }
    for path, reply in samples.items():
        method = reply.request.method.lower()
        described = document["paths"][path][method]["responses"][str(reply.status_code)]
        fits(reply.json(), described["content"]["application/json"]["schema"], document, path)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["responses"]["422"]["content"]["application/json"]["schema"]["$ref"].endswith(
                "/ErrorMessage"
            )
            success = next(r for status, r in operation["responses"].items() if status.startswith("2"))
            for media_type, content in success.get("content", {}).items():
                assert media_type != "application/json" or "$ref" in content["schema"], (method, path)


def fits(value: object, schema: dict, document: dict, where: str) -> None:
    """Checks a value against a schema of the document: types, required keys, no others, choices and patterns."""
    if "$ref" in schema:
        return fits(value, document["components"]["schemas"][schema["$ref"].rpartition("/")[2]], document, where)
    if "anyOf" in schema:
        failures = []
        for option in schema["anyOf"]:
            try:
                return fits(value, option, document, where)
            except AssertionError as error:
                failures.append(str(error))
        raise AssertionError(f"{where}: {failures}")
    kinds = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int}
    kind = schema["type"]
    assert isinstance(value, (int, float) if kind == "number" else kinds[kind]), f"{where}: {value!r} is no {kind}"
    if kind == "object":
        assert set(value) == set(schema["properties"]), where
        for name, item in value.items():
            fits(item, schema["properties"][name], document, f"{where}.{name}")
    if kind == "array":
        parts = schema.get("prefixItems") or [schema["items"]] * len(value)
        assert len(parts) == len(value), where
        for number, (item, part) in enumerate(zip(value, parts, strict=True)):
            fits(item, part, document, f"{where}.{number}")
    if "enum" in schema:
        assert value in schema["enum"], where
    if "pattern" in schema:
        assert re.match(schema["pattern"], value), where
    return None
