"""The query: appearances of the right person, verdicts that hold, and answers that say nobody is there."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import datetime, timedelta, timezone

import numpy as np
import pyarrow as pa
import pytest
from person_search.errors import PersonSearchError
from person_search.search.answers import describe
from person_search.search.calibration import FEWEST_PAIRS, Calibration, calibrate, verdict_of
from person_search.search.query import QueryError, find_person, query_person, stored_person
from person_search.search.store import Filter, StoreInfo, detection_id, detections_schema, open_store, tracklet_id

DIMENSION = 32
START = datetime(2024, 5, 1, tzinfo=timezone.utc)


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def looks(rng: np.random.Generator, person: np.ndarray, count: int = 1, noise: float = 0.5) -> np.ndarray:
    return unit(person + rng.normal(size=(count, DIMENSION)) * noise).astype(np.float32)


def fill(store, people: np.ndarray, rng: np.random.Generator, cameras=("a", "b"), frames: int = 60) -> None:
    """Cameras that see four of some people in each frame; a person keeps one tracklet a camera."""
    rows = []
    for camera in cameras:
        source = f"/footage/{camera}.mp4"
        for frame in range(frames):
            for box, who in enumerate(rng.choice(len(people), 4, replace=False)):
                rows.append({
                    "id": detection_id(source, camera, frame, box), "source": source, "camera": camera,
                    "time": START + timedelta(seconds=frame), "offset": float(frame), "frame": frame,
                    "x0": 100.0 * box, "y0": 0.0, "x1": 100.0 * box + 50, "y1": 120.0, "width": 500, "height": 200,
                    "score": 0.9, "tracklet": tracklet_id(source, camera, int(who)),
                    "embedding": looks(rng, people[who])[0].tolist(),
                })  # fmt: skip
    store.upsert(pa.Table.from_pylist(rows, schema=detections_schema(DIMENSION)))


def open_empty(folder):
    return open_store(str(folder / "store"), info=StoreInfo("model", "0" * 64, DIMENSION), create=True)


@pytest.fixture(scope="module")
def people() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(12, DIMENSION))


@pytest.fixture(scope="module")
def filled(tmp_path_factory, people):
    store = open_empty(tmp_path_factory.mktemp("filled"))
    fill(store, people, np.random.default_rng(1))
    return store


def who_of(tracklet: str) -> int:
    return int(tracklet.rpartition(":")[2])


def who(appearance) -> int:
    return who_of(appearance.tracklet)


def test_the_person_is_found_under_every_camera(filled, people):
    rng = np.random.default_rng(2)
    for person in range(len(people)):
        answer = find_person(filled, looks(rng, people[person], 2), top=5)
        assert answer.found and answer.searched == 24
        first, second = answer.appearances[:2]
        assert who(first) == who(second) == person
        assert {first.camera, second.camera} == {"a", "b"}
        assert first.verdict == second.verdict == "likely"
        assert first.similarity >= second.similarity > answer.appearances[2].similarity


def test_who_is_not_there_is_said_not_to_be(tmp_path):
    alarms = []
    for world in range(8):
        rng = np.random.default_rng(world)
        people = rng.normal(size=(12, DIMENSION))
        store = open_empty(tmp_path / str(world))
        fill(store, people, rng)
        calibration = calibrate(store)
        for stranger in rng.normal(size=(25, DIMENSION)):
            alarms.append(find_person(store, looks(rng, stranger), top=5, calibration=calibration).found)
    assert np.mean(alarms) <= 0.08  # LIKELY promises one false alarm in twenty searches


def test_an_appearance_has_its_extent_and_best_detection(filled, people):
    answer = find_person(filled, looks(np.random.default_rng(4), people[3]), where=Filter(cameras=("b",)), top=1)
    (appearance,) = answer.appearances
    rows = [
        row for batch in filled.scan(Filter(tracklets=(appearance.tracklet,))) for row in batch.to_pylist()
    ]  # fmt: skip
    assert appearance.detections == len(rows) > 5
    assert (appearance.start, appearance.end) == (min(r["time"] for r in rows), max(r["time"] for r in rows))
    assert (appearance.start_offset, appearance.end_offset) == (
        min(r["offset"] for r in rows), max(r["offset"] for r in rows)
    )  # fmt: skip
    best = next(row for row in rows if row["id"] == appearance.best.id)
    assert best["frame"] == appearance.best.frame and appearance.best.box == (
        best["x0"], best["y0"], best["x1"], best["y1"]
    )  # fmt: skip


def test_reranking_changes_the_order_and_no_similarity(filled, people):
    rng, changed = np.random.default_rng(5), 0
    for person in range(len(people)):
        query = looks(rng, people[person], noise=1.5)
        plain, reranked = (find_person(filled, query, top=24, rerank=rerank) for rerank in (False, True))
        assert who(reranked.appearances[0]) == person
        changed += [a.tracklet for a in plain.appearances] != [a.tracklet for a in reranked.appearances]
        similarities = {a.tracklet: a.similarity for a in plain.appearances}
        assert all(similarities[a.tracklet] == pytest.approx(a.similarity) for a in reranked.appearances)
    assert changed > 3


def test_what_looks_like_a_wrong_hit_is_left_out(filled, people):
    rng = np.random.default_rng(6)
    query = unit(people[3] + 0.6 * people[5])[None]
    assert 5 in {who(a) for a in find_person(filled, query, top=6).appearances}
    refined = find_person(filled, query, top=6, negatives=looks(rng, people[5], 3))
    assert 3 in {who(a) for a in refined.appearances}
    assert 5 not in {who(a) for a in refined.appearances}


def test_joined_pictures_find_better_than_each(filled, people):
    rng = np.random.default_rng(7)
    alone, joined = [], []
    for person in range(len(people)):
        pictures = looks(rng, people[person], 5, noise=2.0)
        for chosen, hits in ((pictures[:1], alone), (pictures, joined)):
            hits.append(np.mean([who(a) == person for a in find_person(filled, chosen, top=2).appearances]))
    assert np.mean(joined) > np.mean(alone)


def test_filters_are_kept_and_an_empty_answer_is_one(filled, people):
    query = looks(np.random.default_rng(8), people[0])
    until = START + timedelta(seconds=10)
    answer = find_person(filled, query, where=Filter(cameras=("a",), until=until))
    assert answer.appearances and all(a.camera == "a" and a.start < until for a in answer.appearances)
    for where in (Filter(cameras=("nowhere",)), Filter(since=START + timedelta(days=1))):
        answer = find_person(filled, query, where=where)
        assert answer.appearances == () and not answer.found
    assert find_person(filled, query, where=Filter(cameras=("nowhere",)), rerank=True).appearances == ()


def test_without_frames_of_several_persons_nothing_is_claimed(tmp_path, people):
    store = open_empty(tmp_path)
    source, rng = "/photos/1.jpg", np.random.default_rng(9)
    row = {
        "id": detection_id(source, "photos", 0, 0), "source": source, "camera": "photos", "time": None, "offset": 0.0,
        "frame": 0, "x0": 0.0, "y0": 0.0, "x1": 50.0, "y1": 100.0, "width": 60, "height": 110, "score": 0.9,
        "tracklet": tracklet_id(source, "photos", 0), "embedding": looks(rng, people[0])[0].tolist(),
    }  # fmt: skip
    store.upsert(pa.Table.from_pylist([row], schema=detections_schema(DIMENSION)))
    answer = find_person(store, looks(rng, people[0]))
    (appearance,) = answer.appearances
    assert not answer.calibration.known and not answer.found
    assert appearance.verdict == "uncertain" and math.isnan(appearance.false_match_rate)
    assert appearance.start is None


def test_the_rate_of_false_matches_is_that_of_new_pairs(filled, people):
    calibration = calibrate(filled)
    assert calibration.known and calibration.detections_per_appearance == pytest.approx(20)
    assert calibration.pairs == 2 * 66  # every two of twelve people share frames of both cameras
    assert calibration.similarities.size > 66 * 2 * 2
    grid = np.linspace(-1, 1, 60)
    shares = [calibration.share_of_strangers(s) for s in grid]
    assert shares[0] == 1 and all(a >= b for a, b in zip(shares, shares[1:], strict=False)) and 0 < shares[-1] < 1e-3
    # New people under the same cameras, and what the calibration says of how alike they look.
    rng = np.random.default_rng(3)
    strangers = np.array([
        [hit.similarity for hit in find_person(filled, looks(rng, person), top=24, calibration=calibration).appearances]
        for person in rng.normal(size=(60, DIMENSION))
    ])  # fmt: skip
    for share in (0.5, 0.2, 0.05):
        said = calibration.share_of_strangers(float(np.quantile(strangers, 1 - share)))
        assert 0.6 * share <= said <= 1.6 * share


def test_boxes_of_one_person_are_no_pair_of_two(tmp_path, people):
    store, rng = open_empty(tmp_path), np.random.default_rng(10)
    rows = []
    for frame in range(FEWEST_PAIRS + 20):
        for box, (x0, x1) in enumerate([(0.0, 60.0), (5.0, 50.0)]):  # one within the other
            source = "/footage/a.mp4"
            rows.append({
                "id": detection_id(source, "a", frame, box), "source": source, "camera": "a", "time": None,
                "offset": float(frame), "frame": frame, "x0": x0, "y0": 0.0, "x1": x1, "y1": 100.0, "width": 100,
                "height": 100, "score": 0.9, "tracklet": tracklet_id(source, "a", 2 * frame + box),
                "embedding": looks(rng, people[0])[0].tolist(),
            })  # fmt: skip
    store.upsert(pa.Table.from_pylist(rows, schema=detections_schema(DIMENSION)))
    assert calibrate(store).similarities.size == 0


@pytest.mark.parametrize("searched", [1, 20, 1000])
def test_rates_follow_benjamini_and_hochberg(searched):
    calibration = Calibration(np.sort(np.random.default_rng(0).normal(0.2, 0.1, 500)), 500)
    hits = np.array([0.3, 0.62, 0.9, 0.58, 0.45, 0.55])
    falling = sorted(hits, reverse=True)
    for hit, rate in zip(hits, calibration.false_match_rates(hits, searched), strict=True):
        # The best of all cuts at this hit or below it.
        cuts = [searched * calibration.share_of_strangers(s) / (k + 1) for k, s in enumerate(falling) if s <= hit]
        assert rate == pytest.approx(min(1.0, *cuts) if len(cuts) > 1 else min(1.0, cuts[0]))
    assert calibration.false_match_rates(np.zeros(0), searched).shape == (0,)
    unknown = Calibration(np.zeros(0), 0)
    assert np.isnan(unknown.false_match_rates(hits, searched)).all()


@pytest.mark.parametrize(
    ("rate", "verdict"),
    [(0.0, "likely"), (0.05, "likely"), (0.06, "uncertain"), (0.51, "unlikely"), (math.nan, "uncertain")],
)
def test_verdicts_are_those_of_rates(rate, verdict):
    assert verdict_of(rate) == verdict


def test_what_is_called_likely_is_false_as_seldom_as_is_said(tmp_path):
    false, found = [], []
    for world in range(6):
        rng = np.random.default_rng(100 + world)
        people = rng.normal(size=(12, DIMENSION))
        store = open_empty(tmp_path / str(world))
        fill(store, people, rng, frames=40)
        calibration = calibrate(store)
        for person in range(len(people)):
            answer = find_person(store, looks(rng, people[person], noise=1.2), top=24, calibration=calibration)
            right = [who(a) == person for a in answer.likely]
            false.append(1 - np.mean(right) if right else 0.0)
            found.append(sum(right) / 2)
    assert np.mean(false) <= 0.08 and np.mean(found) >= 0.6


def test_a_tracker_that_mixes_people_up_does_not_blind_the_calibration(tmp_path, people):
    clean, mixed = (open_empty(tmp_path / name) for name in ("clean", "mixed"))
    fill(clean, people, np.random.default_rng(1))
    for batch in clean.scan():
        rows = batch.to_pylist()
        for row in rows:  # half-way, everybody goes on with the number of somebody else
            number = (who_of(row["tracklet"]) + (row["frame"] >= 30)) % len(people)
            row["tracklet"] = f"{row['tracklet'][:-6]}{number:06d}"
        mixed.upsert(pa.Table.from_pylist(rows, schema=detections_schema(DIMENSION)))
    # Against whole tracklets, every other pair would look like one person; at most a few around the change do.
    shares = [calibrate(store).share_of_strangers(0.8) for store in (clean, mixed)]
    assert shares[1] <= shares[0] + 0.05


def test_a_long_appearance_is_compared_by_some_of_its_looks(tmp_path, people):
    store, rng = open_empty(tmp_path), np.random.default_rng(3)
    fill(store, people[:1].repeat(4, axis=0), rng, cameras=("a",), frames=100)  # four numbers, a hundred looks each
    query = looks(rng, people[0])
    (hit, *_) = find_person(store, query, top=4).appearances
    rows = [row for batch in store.scan(Filter(tracklets=(hit.tracklet,))) for row in batch.to_pylist()]
    mean = unit(np.mean([row["embedding"] for row in rows], axis=0))
    assert hit.detections == len(rows) == 100
    assert hit.similarity == pytest.approx(float(mean @ query[0]), abs=0.05)
    best = max(rows, key=lambda row: float(np.dot(row["embedding"], query[0])))
    assert hit.best.id == best["id"]


def test_a_stored_detection_may_be_the_query(filled):
    answer = find_person(filled, np.ones(DIMENSION), top=1)
    person = stored_person(filled, answer.appearances[0].best.id)
    again = find_person(filled, person.embedding, top=1).appearances[0]
    assert again.best.id == person.picture
    # That somebody is found where the query was taken from says nothing.
    alone = find_person(
        filled, person.embedding, where=Filter(tracklets=(again.tracklet,)), top=1, queries=[person]
    )  # fmt: skip
    assert alone.appearances[0].is_query and alone.likely == () and not alone.found
    assert "query" in describe(alone).splitlines()[-1] and "the query's own" in describe(alone)
    assert not any(appearance.is_query for appearance in answer.appearances)
    with pytest.raises(PersonSearchError, match="no detection"):
        stored_person(filled, "0" * 16 + ":0000000000:0000")


def test_top_has_to_be_positive(filled):
    with pytest.raises(PersonSearchError, match="top"):
        find_person(filled, np.ones(DIMENSION), top=0)


def test_a_box_says_who_is_meant(searcher, textured):
    picture = textured(0, 160, 200)
    found = searcher.detect(picture)
    assert len(found) > 1
    with pytest.raises(QueryError, match=f"{len(found)} persons") as caught:
        query_person(searcher, picture)
    assert len(caught.value.detections) == len(found)
    person = query_person(searcher, picture, [20, 30, 70, 140], name="shop")
    assert (person.picture, person.chosen, person.box) == ("shop", "given", (20.0, 30.0, 70.0, 140.0))
    np.testing.assert_allclose(person.embedding, searcher.embed(picture, np.array([[20, 30, 70, 140]]))[0])


def test_a_picture_cut_around_a_person_is_taken_whole(searcher, textured, monkeypatch):
    found = searcher.detect(textured(0, 150, 60))
    nobody = replace(found, boxes=found.boxes[:0], scores=found.scores[:0], embeddings=found.embeddings[:0])
    monkeypatch.setattr(searcher, "detect", lambda image: nobody)
    person = query_person(searcher, textured(0, 150, 60))
    assert person.chosen == "whole" and person.box == (0, 0, 60, 150)
    monkeypatch.setattr(searcher, "detect", lambda image: replace(nobody, image_size=(60, 150)))
    with pytest.raises(QueryError, match="no person is detected"):
        query_person(searcher, textured(0, 60, 150))
