"""Sets that other code has registered with Detectron2."""

from __future__ import annotations

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from detectron2.structures import BoxMode
from person_search.data.registration import protocol_reader, registered_records
from person_search.data.training_set import load_training_set
from person_search.errors import DatasetError

NAME = "their_set"


@pytest.fixture(autouse=True)
def forget():
    yield
    DatasetCatalog.pop(NAME, None)
    MetadataCatalog.pop(NAME, None)


@pytest.fixture
def instances(tmp_path):
    """A JSON file of persons and dogs, numbered as COCO's are, registered as Detectron2's users do."""
    content = {
        "categories": [{"id": 17, "name": "dog"}, {"id": 40, "name": "person"}],
        "images": [{"id": k, "file_name": f"{k}.jpg", "height": 40, "width": 60} for k in (7, 8)],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 40, "bbox": [1, 2, 10, 20], "iscrowd": 0, "person_id": 3},
            {"id": 2, "image_id": 7, "category_id": 17, "bbox": [1, 2, 10, 20], "iscrowd": 0},
            {"id": 3, "image_id": 8, "category_id": 40, "bbox": [5, 2, 10, 20], "iscrowd": 0, "person_id": 3},
            {"id": 4, "image_id": 8, "category_id": 40, "bbox": [5, 2, 10, 20], "iscrowd": 1},
        ],
    }

    def register(change=lambda content: None):
        change(content)
        (tmp_path / "all.json").write_text(json.dumps(content))
        register_coco_instances(NAME, {}, str(tmp_path / "all.json"), str(tmp_path))
        return tmp_path

    return register


def test_of_coco_instances_the_persons_are_taken(instances):
    folder = instances()
    records = registered_records(NAME)
    assert [(r["file_name"], r["image_id"]) for r in records] == [
        (str(folder / "7.jpg"), "7.jpg"), (str(folder / "8.jpg"), "8.jpg"),
    ]  # fmt: skip
    assert [[a["bbox"] for a in r["annotations"]] for r in records] == [[[1, 2, 11, 22]], [[5, 2, 15, 22]]]
    training_set = load_training_set((NAME,))
    assert len(training_set) == 2 and len(training_set.fingerprint()) == 64
    assert [q.image_id for q in protocol_reader(NAME)().queries] == ["7.jpg", "8.jpg"]


def test_what_coco_instances_lack_is_named(instances, tmp_path):
    instances(lambda content: content.update(categories=[{"id": 17, "name": "dog"}, {"id": 40, "name": "cat"}]))
    with pytest.raises(DatasetError, match="all.json: no category is named person"):
        registered_records(NAME)
    (tmp_path / "all.json").unlink()
    with pytest.raises(DatasetError, match="their_set: the file .*all.json is missing"):
        registered_records(NAME)


def test_the_sets_that_detectron2_brings_along_are_read_or_refused(tmp_path):
    with pytest.raises(DatasetError, match="coco_2017_val: the file .*instances_val2017.json is missing"):
        registered_records("coco_2017_val")


def register(*annotations, classes=("cat", "Person"), **changes):
    record = {"file_name": "/7.jpg", "image_id": 7, "height": 40, "width": 60, "annotations": list(annotations)}
    DatasetCatalog.register(NAME, lambda: [{**record, **changes}])
    if classes:
        MetadataCatalog.get(NAME).set(thing_classes=list(classes))


def annotation(**changes):
    return {"bbox": [1, 2, 10, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "iscrowd": 0, **changes}


def test_of_detectron2s_records_the_persons_are_taken():
    polygon = [[1.0, 2.0, 11.0, 2.0, 11.0, 22.0, 1.0, 22.0]]
    register(
        annotation(segmentation=polygon, person_id=5), annotation(category_id=0), annotation(iscrowd=1),
        annotation(bbox=[5, 2, 15, 22], bbox_mode=BoxMode.XYXY_ABS), camera_id=2,
    )  # fmt: skip
    (record,) = registered_records(NAME)
    assert (record["image_id"], record["camera_id"]) == ("7", 2)
    assert [(a["bbox"], a["person_id"], a["instance_index"]) for a in record["annotations"]] == [
        ([1, 2, 11, 22], 5, 0), ([5, 2, 15, 22], -1, 1),
    ]  # fmt: skip
    assert record["annotations"][0]["segmentation"]["size"] == [40, 60]


@pytest.mark.parametrize("classes", [("player",), ()])
def test_the_only_category_is_persons_whatever_its_name(classes):
    register(annotation(category_id=0), classes=classes)
    assert len(registered_records(NAME)[0]["annotations"]) == 1


def test_a_set_without_persons_is_refused():
    register(annotation(), classes=("cat", "dog", "cow"))
    with pytest.raises(DatasetError, match="their_set: none of its 3 categories is named person .cat, dog, cow"):
        registered_records(NAME)


def test_records_of_another_form_are_refused_in_one_line():
    register({"bbox": [1, 2, 3, 4]})
    with pytest.raises(DatasetError, match="their_set: is registered by other code, .*KeyError.*register_coco_json"):
        registered_records(NAME)
    DatasetCatalog.pop(NAME)
    DatasetCatalog.register(NAME, lambda: 1 / 0)
    with pytest.raises(DatasetError, match="ZeroDivisionError: division by zero"):
        registered_records(NAME)


def test_a_set_without_identities_cannot_be_searched():
    register(annotation())
    protocol = protocol_reader(NAME)()
    assert protocol.queries == () and protocol.no_search == "no person has an identity"
