"""Who is a person in a file of COCO's JSON format, and which one: categories, marks, tracks, boxes of a detector."""

from __future__ import annotations

import copy
import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from person_search.data.coco_json import Choice, load_coco_json, register_coco_json
from person_search.errors import ConfigError, DatasetError


def identities(records):
    return [a["person_id"] for r in records for a in r["annotations"]]


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"track_id": 4, "occluded": False}, 4),
        ({"track_id": "4"}, 4),
        ({"track_id": 0}, 0),
        ({"track_id": None}, -1),
        ({"occluded": True}, -1),
        ([], -1),
        (None, -1),
    ],
)
def test_the_track_of_cvat_is_an_identity_where_there_is_no_other(coco_file, attributes, expected):
    def change(content):
        content["annotations"][0].update(person_id=None, attributes=attributes)
        content["annotations"][1]["attributes"] = {"track_id": 9}

    assert identities(load_coco_json("d", *coco_file(change))) == [expected, -1, 5, -1]


def test_a_tracklet_is_kept_and_no_identity(coco_file):
    def change(content):
        content["annotations"][0]["tracklet_id"] = 12
        content["annotations"][1].update(tracklet_id=0, attributes={"track_id": 9})  # CVAT's track is no tracklet

    records = load_coco_json("d", *coco_file(change))
    annotations = [annotation for record in records for annotation in record["annotations"]]
    assert [annotation.get("tracklet_id") for annotation in annotations] == [12, None, 0, None]
    assert identities(records) == [5, -1, 5, -1]
    with pytest.raises(DatasetError, match=r"annotations\[0\]: 'tracklet_id' is 'left', expected int"):
        load_coco_json("d", *coco_file(lambda c: c["annotations"][0].update(tracklet_id="left")))


def test_a_track_that_is_no_number_is_named(coco_file):
    with pytest.raises(DatasetError, match=r"annotations\[4\]: attributes: 'track_id' is 'left', expected int"):
        load_coco_json("d", *coco_file(lambda c: c["annotations"][4].update(attributes={"track_id": "left"})))


def test_categories_that_are_persons_can_be_named(coco_file, caplog):
    def change(content):
        content["categories"] = [{"id": 3, "name": "Rider"}, {"id": 8, "name": "walker"}]

    with pytest.raises(DatasetError, match="no category is named person; there are Rider, walker: set CATEGORIES"):
        load_coco_json("d", *coco_file(change))
    with caplog.at_level("INFO", logger="person_search"):
        assert identities(load_coco_json("d", *coco_file(change), choice=Choice(("rider",)))) == [5, -1, 5, -1]
    assert "d: 4 boxes used; skipped 1 of category walker, 1 marked iscrowd or ignore" in caplog.text
    assert len(identities(load_coco_json("d", *coco_file(change), choice=Choice(("rider", "Walker"))))) == 5
    with pytest.raises(DatasetError, match="CATEGORIES has bus, which is not a category; there are Rider, walker"):
        load_coco_json("d", *coco_file(change), choice=Choice(("rider", "bus")))


def test_the_only_category_is_persons_whatever_its_name(coco_file):
    def change(content):
        content["categories"] = [{"id": 3, "name": "player"}]
        content["annotations"] = content["annotations"][:2]

    assert sum(len(r["annotations"]) for r in load_coco_json("d", *coco_file(change))) == 2


@pytest.mark.parametrize("mark", ["iscrowd", "ignore"])
@pytest.mark.parametrize(
    "value, kept", [(1, 0), ("1", 0), (True, 0), (1.0, 0), ("0", 1), (0, 1), (None, 1), (False, 1)]
)
def test_marks_of_what_is_no_person(coco_file, caplog, mark, value, kept):
    with caplog.at_level("INFO", logger="person_search"):
        records = load_coco_json("d", *coco_file(lambda c: c["annotations"][1].update({mark: value})))
    assert len(records[1]["annotations"]) == kept
    # The file has a crowd of its own.
    assert f" {2 - kept} marked iscrowd or ignore" in caplog.text


@pytest.fixture
def results(tmp_path):
    """Writes COCO results: two persons in the first frame, by id and by name, a dog, and an unsure one."""
    entries = [
        {"image_id": 10, "category_id": 3, "bbox": [1, 2, 10, 20], "score": 0.9},
        {"image_id": "x/a.jpg", "category_id": 3, "bbox": [20, 2, 10, 20], "score": 0.5},
        {"image_id": "20", "category_id": 8, "bbox": [1, 2, 10, 20], "score": 0.9},
        {"image_id": 30, "category_id": 3, "bbox": [1, 2, 10, 20], "score": 0.49},
        {"image_id": 30, "category_id": 77, "bbox": [1, 2, 10, 20], "score": 1.0},
    ]

    def to_file(change=lambda entries: None):
        content = copy.deepcopy(entries)
        change(content)
        (tmp_path / "results.json").write_text(json.dumps(content))
        return tmp_path / "results.json"

    return to_file


def test_boxes_of_a_detector_stand_in_for_annotations(coco_file, results, coco_name, caplog):
    def images_alone(content):
        del content["annotations"]

    register_coco_json(coco_name, *coco_file(images_alone), results_file=results(), min_score=0.5)
    with caplog.at_level("INFO", logger="person_search"):
        records = DatasetCatalog.get(coco_name)
    assert [[a["bbox"] for a in r["annotations"]] for r in records] == [[[1, 2, 11, 22], [20, 2, 30, 22]], [], []]
    assert identities(records) == [-1, -1]
    assert MetadataCatalog.get(coco_name).load_protocol().no_search == "no person has an identity"
    left_out = "1 of category dog, 1 below the score 0.5, 1 of category 77"
    assert f"{coco_name}: 2 boxes used; skipped {left_out}" in caplog.text


def test_a_detector_of_coco_calls_persons_1_where_the_images_have_no_categories(coco_file, results):
    def images_alone(content):
        del content["annotations"], content["categories"]

    found = results(lambda entries: [entry.update(category_id=1) for entry in entries[:2]])
    records = load_coco_json("d", *coco_file(images_alone), choice=Choice((), found, 0.5))
    assert [len(r["annotations"]) for r in records] == [2, 0, 0]


def test_results_that_do_not_fit_are_named(coco_file, results, coco_name, tmp_path):
    choice = Choice((), results(lambda entries: entries[1].update(image_id="z.jpg")), 0.5)
    with pytest.raises(DatasetError, match="results.json: entry 1: image_id 'z.jpg' is neither the id nor the file_na"):
        load_coco_json("d", *coco_file(), choice=choice)
    with pytest.raises(DatasetError, match="no.json is missing, expected boxes of a detector"):
        load_coco_json("d", *coco_file(), choice=Choice((), tmp_path / "no.json", 0.5))
    for key, value in (("bbox", [1, 2, 3]), ("bbox", None), ("image_id", None), ("image_id", True), ("score", "nan")):
        file = results(lambda entries, key=key, value=value: entries[3].update({key: value}))
        with pytest.raises(DatasetError, match="results.json: entry 3: expected image_id, bbox"):
            load_coco_json("d", *coco_file(), choice=Choice((), file, 0.5))
    for options in ({"results_file": "a.json"}, {"min_score": 0.5}):
        with pytest.raises(ConfigError, match="min_score is .* and results_file .*: give both or neither"):
            register_coco_json(coco_name, *coco_file(), **options)
    with pytest.raises(ConfigError, match="categories is 'rider', expected names"):
        register_coco_json(coco_name, *coco_file(), categories="rider")
