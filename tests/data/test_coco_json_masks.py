"""Masks of COCO's JSON format."""

from __future__ import annotations

import numpy as np
import pytest
from person_search.data.coco_json import load_coco_json
from person_search.errors import DatasetError
from pycocotools import mask as mask_util


def test_masks_of_every_form_become_run_lengths(coco_file):
    whole = np.zeros((40, 60), np.uint8)
    whole[5:15, 10:30] = 1
    packed = mask_util.encode(np.asfortranarray(whole))
    runs = np.flatnonzero(np.diff(np.concatenate([[0], whole.ravel("F"), [2]])))
    counts = np.diff([0, *runs]).tolist()
    forms = [
        {"size": [40, 60], "counts": packed["counts"].decode()},
        {"size": [40, 60], "counts": counts},
        [[10, 5, 30, 5, 30, 15, 10, 15]],
    ]
    for form in forms:
        records = load_coco_json("d", *coco_file(lambda c, form=form: c["annotations"][0].update(segmentation=form)))
        segmentation = records[0]["annotations"][0]["segmentation"]
        np.testing.assert_array_equal(mask_util.decode(segmentation), whole)
        assert "segmentation" not in records[0]["annotations"][1]


@pytest.mark.parametrize("form", [{"size": [9, 9], "counts": "x"}, {"counts": "x"}, ["x"], "x", 7])
def test_bad_masks_are_named(coco_file, form):
    with pytest.raises(DatasetError, match=r"annotations\[0\]: 'segmentation' is neither"):
        load_coco_json("d", *coco_file(lambda c: c["annotations"][0].update(segmentation=form)))


@pytest.mark.parametrize("form", [[[26, 31, 50, 31]], [[]], [26, 31, 50, 31], [[1, 2], [5, 6, 7, np.nan, 1, 2]]])
def test_a_mask_without_an_area_costs_its_person_alone(coco_file, caplog, form):
    good = [[10, 5, 30, 5, 30, 15, 10, 15]]

    def change(content):
        content["annotations"][0].update(segmentation=form)
        content["annotations"][1].update(segmentation=good)

    masks = ["segmentation" in a for r in load_coco_json("d", *coco_file(change)) for a in r["annotations"]]
    assert sum(masks) == 1
    assert "d: 1 masks are empty, their persons have none (for example" in caplog.text
    assert "annotations[0]: its polygon has" in caplog.text


def test_of_several_polygons_those_with_an_area_count(coco_file):
    polygons = [[10, 5, 30, 5], [10, 5, 30, 5, 30, 15, 10, 15]]
    records = load_coco_json("d", *coco_file(lambda c: c["annotations"][0].update(segmentation=polygons)))
    assert mask_util.area(records[0]["annotations"][0]["segmentation"]) == 200


@pytest.mark.parametrize("form", [None, [], {}, ""])
def test_no_mask_is_no_mask(coco_file, caplog, form):
    records = load_coco_json("d", *coco_file(lambda c: c["annotations"][0].update(segmentation=form)))
    assert not any("segmentation" in a for r in records for a in r["annotations"]) and "mask" not in caplog.text


def test_a_polygon_as_a_flat_list(coco_file):
    flat = [10, 5, 30, 5, 30, 15, 10, 15]
    records = load_coco_json("d", *coco_file(lambda c: c["annotations"][0].update(segmentation=flat)))
    assert mask_util.area(records[0]["annotations"][0]["segmentation"]) == 200
