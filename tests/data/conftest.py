"""Fixtures of the data tests."""

from __future__ import annotations

import copy
import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

COCO_CONTENT = {
    "categories": [{"id": 3, "name": "person"}, {"id": 8, "name": "dog"}],
    "images": [
        {"id": 10, "file_name": "x/a.jpg", "height": 40, "width": 60, "camera_id": 2},
        {"id": 20, "file_name": "b.jpg", "height": 40, "width": 60, "camera_id": 1},
        {"id": 30, "file_name": "c.jpg", "height": 40, "width": 60},
    ],
    "annotations": [
        {"id": 1, "image_id": 10, "category_id": 3, "bbox": [1, 2, 10, 20], "person_id": 5},
        {"id": 2, "image_id": 20, "category_id": 3, "bbox": [50, 2, 20, 20], "person_id": 5},
        {"id": 3, "image_id": 20, "category_id": 8, "bbox": [1, 2, 10, 20]},
        {"id": 4, "image_id": 20, "category_id": 3, "bbox": [1, 2, 10, 20], "iscrowd": 1},
        {"id": 5, "image_id": 30, "category_id": 3, "bbox": [1.5, 2, 10, 20], "person_id": None},
        {"id": 6, "image_id": 10, "category_id": 3, "bbox": [5, 5, 9, 9], "person_id": -2, "segmentation": []},
    ],
}


@pytest.fixture
def coco_file(tmp_path):
    """Writes COCO_CONTENT, changed, and gives the arguments of the readers."""

    def to_file(change=lambda content: None):
        content = copy.deepcopy(COCO_CONTENT)
        change(content)
        (tmp_path / "data.json").write_text(json.dumps(content, indent=1))
        return tmp_path / "data.json", tmp_path / "images"

    return to_file


@pytest.fixture
def coco_name():
    yield "coco_test"
    DatasetCatalog.pop("coco_test", None)
    MetadataCatalog.pop("coco_test", None)
