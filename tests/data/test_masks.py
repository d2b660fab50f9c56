"""Foreground masks: run lengths, the store, attaching to records."""

from __future__ import annotations

import json
import logging
import os

import numpy as np
import pytest
from detectron2.structures import BoxMode
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from person_search.data.masks import (
    MaskStore,
    attach_masks,
    box_window,
    decode_columns,
    default_mask_file,
    encode_rle,
    limit_to_box,
    run_lengths,
)
from person_search.errors import DatasetError
from pycocotools import mask as mask_util

HEIGHT, WIDTH = 40, 60


def record(image_id="a.jpg", boxes=((10, 5, 20, 30),), **fields):
    annotations = [
        {"bbox": list(map(float, b)), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0, "person_id": 1}
        for b in boxes
    ]
    return {"image_id": image_id, "height": HEIGHT, "width": WIDTH, "annotations": annotations, **fields}


def box_mask(x0, y0, x1, y1):
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


MASKS = st.tuples(st.integers(1, 30), st.integers(1, 30)).flatmap(lambda shape: arrays(bool, shape))


@given(mask=MASKS, data=st.data())
def test_columns_are_decoded_as_pycocotools_does(mask, data):
    rle = encode_rle(mask)
    assert np.array_equal(mask_util.decode(rle).astype(bool), mask)
    x0 = data.draw(st.integers(0, mask.shape[1]))
    x1 = data.draw(st.integers(x0, mask.shape[1]))
    for counts in (rle["counts"], rle["counts"].encode(), run_lengths(rle).tolist()):
        decoded = decode_columns({"size": rle["size"], "counts": counts}, x0, x1)
        assert decoded.dtype == bool
        assert np.array_equal(decoded, mask[:, x0:x1])


def test_long_runs_are_decoded():
    mask = np.zeros((2000, 3000), dtype=bool)
    mask[1999, 2990:] = True
    assert run_lengths(encode_rle(mask))[:3].tolist() == [2000 * 2990 + 1999, 1, 1999]
    assert np.array_equal(decode_columns(encode_rle(mask), 2980, 3000), mask[:, 2980:])


@pytest.mark.parametrize(
    "change",
    [
        lambda counts: counts[:-2],
        lambda counts: counts + "99",
        lambda counts: "",
        lambda counts: counts[:-1] + "o",
        lambda counts: "o" * 20 + "1" + counts,
        lambda counts: counts + "~",
        lambda counts: counts + "é",
    ],
)
def test_damaged_run_lengths_are_refused(change):
    rle = encode_rle(box_mask(10, 5, 20, 30))
    with pytest.raises(DatasetError, match="segmentation is"):
        run_lengths({**rle, "counts": change(rle["counts"])})


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [4, 4]},
        {"counts": [16]},
        {"size": [4, 4], "counts": [-2, 18]},
        {"size": [4, 4], "counts": [[16]]},
        {"size": [4], "counts": [4]},
    ],
)
def test_what_is_no_run_length_encoding_is_refused(rle):
    with pytest.raises(DatasetError, match="segmentation is"):
        run_lengths(rle)


COORDINATES = st.floats(-20, 80, allow_nan=False)


@given(x=st.tuples(COORDINATES, COORDINATES), y=st.tuples(COORDINATES, COORDINATES))
def test_a_window_holds_the_pixels_that_a_box_touches(x, y):
    (x0, x1), (y0, y1) = sorted(x), sorted(y)
    touched = np.zeros((HEIGHT, WIDTH), dtype=bool)
    touched[box_window((x0, y0, x1, y1), HEIGHT, WIDTH)] = True
    row, column = np.mgrid[:HEIGHT, :WIDTH]
    expected = (column + 1 > x0) & (column < x1) & (row + 1 > y0) & (row < y1)
    assert np.array_equal(touched & expected, expected)
    if x1 > x0 and y1 > y0:
        assert np.array_equal(touched, expected)


def test_a_window_is_widened_by_its_margin():
    assert box_window((20, 10, 30, 20), HEIGHT, WIDTH, 0.25) == (slice(7, 23), slice(17, 33))
    assert box_window((55, 35, 60, 40), HEIGHT, WIDTH, 0.5) == (slice(32, 40), slice(52, 60))


def test_masks_are_limited_to_their_box():
    mask = np.ones((HEIGHT, WIDTH), dtype=bool)
    assert np.array_equal(limit_to_box(mask, (10.5, 5, 20, 29.2)), box_mask(10, 5, 20, 30))
    assert limit_to_box(~mask, (10, 5, 20, 30)) is None
    assert limit_to_box(box_mask(10, 5, 12, 11), (10, 5, 20, 30)) is None  # 12 of 250 pixels
    assert limit_to_box(box_mask(10, 5, 13, 10), (10, 5, 20, 30)) is not None  # 15 of 250
    assert limit_to_box(mask, (70, 5, 80, 30)) is None


def test_a_saved_store_is_the_same_when_loaded(tmp_path):
    store = MaskStore("set", "grabcut")
    store.add("a.jpg", (10, 5, 20, 30), box_mask(12, 6, 18, 29))
    store.add("a.jpg", (30.5, 5, 40, 30), None)
    store.add("ü/b.jpg", (0, 0, 3, 3), box_mask(0, 0, 3, 3).astype(np.uint8))
    path = tmp_path / "new" / "masks.json"
    store.save(path)
    loaded = MaskStore.load(path)
    assert (loaded.dataset, loaded.provider, len(loaded)) == ("set", "grabcut", 2)
    assert np.array_equal(mask_util.decode(loaded.get("a.jpg", (10, 5, 20, 30))), box_mask(12, 6, 18, 29))
    assert loaded.has("a.jpg", (30.5, 5, 40, 30)) and loaded.get("a.jpg", (30.5, 5, 40, 30)) is None
    assert loaded.get("ü/b.jpg", (0, 0, 3, 3)) == store.get("ü/b.jpg", (0, 0, 3, 3))
    assert os.listdir(path.parent) == ["masks.json"]


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "masks.json"
    MaskStore("old").save(path)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(DatasetError, match="cannot write .*masks.json: disk full"):
        MaskStore("new").save(path)
    assert MaskStore.load(path).dataset == "old"
    assert os.listdir(tmp_path) == ["masks.json"]


@pytest.mark.parametrize(("moved", "found"), [(0.0, True), (0.9, True), (1.5, False)])
def test_boxes_match_within_a_pixel(moved, found):
    store = MaskStore()
    store.add("a.jpg", (10, 5, 20, 30), box_mask(10, 5, 20, 30))
    for side in range(4):
        box = [10.0, 5.0, 20.0, 30.0]
        box[side] += moved
        assert store.has("a.jpg", box) is found
        assert (store.get("a.jpg", box) is not None) is found
    assert not store.has("b.jpg", (10, 5, 20, 30))


def test_of_two_near_boxes_each_gets_its_own_mask():
    store = MaskStore()
    boxes = [(10.0, 5.0, 20.0, 30.0), (10.6, 5.0, 20.6, 30.0)]
    masks = [box_mask(10, 5, 15, 30), box_mask(15, 5, 20, 30)]
    for box, mask in zip(boxes, masks, strict=True):
        store.add("a.jpg", box, mask)
    for box, mask in zip(boxes, masks, strict=True):
        assert np.array_equal(mask_util.decode(store.get("a.jpg", box)), mask)
    store.add("a.jpg", boxes[0], masks[1])
    assert len(store) == 2
    assert np.array_equal(mask_util.decode(store.get("a.jpg", boxes[0])), masks[1])


def test_attach_counts_and_skips_changed_annotations():
    store = MaskStore()
    store.add("a.jpg", (10, 5, 20, 30), box_mask(10, 5, 20, 30))
    store.add("a.jpg", (30, 5, 40, 30), None)
    records = [record(boxes=[(10, 5, 20, 30), (30, 5, 40, 30), (13, 5, 20, 30)]), record("b.jpg")]
    assert store.attach(records) == 1
    assert ["segmentation" in a for r in records for a in r["annotations"]] == [True, False, False, False]
    assert np.array_equal(mask_util.decode(records[0]["annotations"][0]["segmentation"]), box_mask(10, 5, 20, 30))


def test_masks_of_frames_of_another_size_are_refused():
    store = MaskStore()
    store.add("a.jpg", (10, 5, 20, 30), box_mask(10, 5, 20, 30))
    with pytest.raises(DatasetError, match=r"mask of a.jpg is for a frame of height x width \[40, 60\].*\[80, 120\]"):
        store.attach([record(height=80, width=120)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("{", "not JSON"),
        ("[]", "field 'format' is 'list'"),
        ('{"format": "coco"}', "field 'format' is 'coco'"),
        ('{"format": "person_search.masks/1"}', "field 'masks'"),
        ('{"format": "person_search.masks/1", "masks": {"a.jpg": [{"bbox": [1, 2, 3]}]}}', "masks of 'a.jpg'"),
        ('{"format": "person_search.masks/1", "masks": {"a.jpg": [{"bbox": [1, 2, 3, 4], "counts": ""}]}}', "'a.jpg'"),
    ],
)
def test_files_that_are_no_mask_files_are_named(tmp_path, content, message):
    path = tmp_path / "masks.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DatasetError, match=message) as caught:
        MaskStore.load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture
def store_file(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    store = MaskStore("my_train", "grabcut")
    store.add("a.jpg", (10, 5, 20, 30), box_mask(10, 5, 20, 30))
    store.save(default_mask_file("my_train"))
    return tmp_path / "masks" / "my_train.json"


def test_the_default_place_is_below_the_datasets(store_file, caplog):
    assert default_mask_file("my_train") == store_file
    records = [record(boxes=[(10, 5, 20, 30), (30, 5, 40, 30)])]
    with caplog.at_level(logging.INFO):
        attach_masks(records, "my_train")
    assert ["segmentation" in a for a in records[0]["annotations"]] == [True, False]
    assert [r.getMessage() for r in caplog.records] == [
        "my_train: 1 of 2 persons have a foreground mask; the other 1 are cropped with their background"
    ]


def test_named_files_replace_the_default_one(store_file, tmp_path):
    MaskStore("my_train").save(tmp_path / "empty.json")
    records = [record()]
    attach_masks(records, "my_train", [str(tmp_path / "empty.json")])
    assert "segmentation" not in records[0]["annotations"][0]
    attach_masks(records, "other", [str(tmp_path / "empty.json"), str(store_file)])
    assert "segmentation" in records[0]["annotations"][0]


def test_without_masks_one_line_says_so(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    records = [record(), record("b.jpg")]
    before = json.dumps(records)
    with caplog.at_level(logging.INFO):
        attach_masks(records, "my_train")
    assert json.dumps(records) == before
    assert len(caplog.records) == 1 and caplog.records[0].levelname == "WARNING"
    assert "my_train: no foreground masks" in caplog.text and "my_train.json does not exist" in caplog.text


def test_a_named_file_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(DatasetError, match="nowhere.json"):
        attach_masks([record()], "my_train", [str(tmp_path / "nowhere.json")])


def test_a_size_that_no_number_holds_is_named(tmp_path):
    file = tmp_path / "masks.json"
    entry = '{"bbox": [1, 2, 3, 4], "size": [Infinity, 2], "counts": "x"}'
    file.write_text(f'{{"format": "person_search.masks/1", "masks": {{"a.jpg": [{entry}]}}}}')
    with pytest.raises(DatasetError, match="masks.json: masks of 'a.jpg' are malformed"):
        MaskStore.load(file)


def test_masks_of_other_frames_name_their_file(tmp_path):
    store = MaskStore("d", "p")
    store.add("a.jpg", [0, 0, 4, 4], np.ones((8, 8), bool))
    store.save(tmp_path / "masks.json")
    record = {"image_id": "a.jpg", "height": 9, "width": 8, "annotations": [{"bbox": [0, 0, 4, 4]}]}
    with pytest.raises(DatasetError, match="masks.json: mask of a.jpg is for a frame of height x width"):
        attach_masks([record], "d", [str(tmp_path / "masks.json")])
