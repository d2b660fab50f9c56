"""Files of COCO's JSON format that break it, each with its message."""

from __future__ import annotations

import pytest
from detectron2.data import DatasetCatalog
from person_search.data.coco_json import load_coco_json, register_coco_json
from person_search.errors import DatasetError


def spoil(*path, value=None, drop=False):
    """A change of COCO_CONTENT at a path of keys and indices."""

    def change(content):
        place = content
        for key in path[:-1]:
            place = place[key]
        if drop:
            del place[path[-1]]
        else:
            place[path[-1]] = value

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (spoil("images", drop=True), "data.json: has no 'images'"),
        (spoil("annotations", value={}), "data.json: 'annotations' is {}, expected list"),
        (spoil("images", 1, value=5), r"images\[1\]: expected an object, found a int"),
        (spoil("images", 1, "id", drop=True), r"images\[1\]: has no 'id'"),
        (spoil("images", 1, "id", value=10), r"images\[1\]: the id 10 is used by two images"),
        (spoil("images", 1, "file_name", value=7), r"images\[1\]: 'file_name' is 7, expected str"),
        (spoil("images", 1, "file_name", value="c.jpg"), "two frames are named 'c.jpg'"),
        (spoil("images", 1, "height", value="40 px"), r"images\[1\]: 'height' is '40 px', expected int"),
        (spoil("images", 1, "height", value=40.5), r"images\[1\]: 'height' is 40.5, expected int"),
        (spoil("annotations", 1, "iscrowd", value="no"), r"annotations\[1\]: 'iscrowd' is 'no', expected 0 or 1"),
        (spoil("annotations", 1, "ignore", value=7), r"annotations\[1\]: 'ignore' is 7, expected 0 or 1"),
        (spoil("annotations", 1, "iscrowd", value=0.5), r"annotations\[1\]: 'iscrowd' is 0.5, expected"),
        (spoil("images", 1, "camera_id", value=True), r"images\[1\]: 'camera_id' is True, expected int"),
        (spoil("annotations", 1, "image_id", value=99), r"annotations\[1\]: image_id 99 is not the id of an image"),
        (spoil("annotations", 1, "id", value=1), r"annotations\[1\]: the id 1 is used by two annotations"),
        (spoil("annotations", 1, "bbox", drop=True), r"annotations\[1\]: has no 'bbox'"),
        (spoil("annotations", 1, "bbox", value=[1, 2, 3]), r"annotations\[1\]: 'bbox' is \[1, 2, 3\], expected \[x, y"),
        (spoil("annotations", 1, "bbox", 0, value="1"), r"annotations\[1\]: 'bbox' is"),
        (spoil("annotations", 1, "person_id", value="p5"), r"annotations\[1\]: 'person_id' is 'p5', expected int"),
        (spoil("annotations", 1, "category_id", drop=True), r"annotations\[1\]: has no 'category_id'"),
        (
            spoil("annotations", 1, "category_id", value=4),
            r"annotations\[1\]: category_id 4 is not the id of a category",
        ),
        (spoil("categories", 0, "name", value="cat"), "no category is named person; there are cat, dog"),
    ],
)
def test_malformed_entries_are_named(coco_file, change, message):
    with pytest.raises(DatasetError, match=message):
        load_coco_json("d", *coco_file(change))


def test_malformed_json_is_named_with_its_line(coco_file):
    json_file, root = coco_file()
    lines = json_file.read_text().splitlines()
    lines[4] = '   "id": ,'
    json_file.write_text("\n".join(lines))
    with pytest.raises(DatasetError, match=r"data.json: line 5, column \d+: "):
        load_coco_json("d", json_file, root)
    json_file.write_text("[]")
    with pytest.raises(DatasetError, match="data.json: expected an object with images and annotations, found a list"):
        load_coco_json("d", json_file, root)
    json_file.write_bytes(b"\xff\xfe{}")
    with pytest.raises(DatasetError, match="data.json: is no JSON"):
        load_coco_json("d", json_file, root)


def test_a_missing_file_is_explained(tmp_path):
    with pytest.raises(DatasetError, match="d: the file .*no.json is missing.*COCO's JSON format"):
        load_coco_json("d", tmp_path / "no.json", tmp_path)


def test_strict_names_the_bad_box(coco_file, coco_name):
    def change(content):
        content["annotations"][1]["bbox"] = [50, 2, 0, 20]

    paths = coco_file(change)
    assert len(load_coco_json("d", *paths)[1]["annotations"]) == 0
    register_coco_json(coco_name, *paths, strict=True)
    with pytest.raises(DatasetError, match="coco_test: box 0 of b.jpg"):
        DatasetCatalog.get(coco_name)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("bbox", [10**400, 1, 2, 3], r"annotations\[0\]: 'bbox' is .*expected \[x, y, width, height\]"),
        ("person_id", 10**30, r"annotations\[0\]: 'person_id' is 10*, expected int of 64 bits"),
    ],
)
def test_numbers_too_large_for_arrays_are_named(coco_file, key, value, message):
    with pytest.raises(DatasetError, match=message):
        load_coco_json("d", *coco_file(lambda content: content["annotations"][0].update({key: value})))


def test_a_frame_without_pixels_is_named(coco_file):
    def spoil(content):
        content["images"][0]["height"] = 0
        content["annotations"][0]["segmentation"] = [[1, 2, 11, 2, 11, 22]]

    with pytest.raises(DatasetError, match=r"images\[0\]: the frame has the size 60 x 0, expected"):
        load_coco_json("d", *coco_file(spoil))
