"""PRW's reader on the real annotations, on its quirks and on damaged downloads."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import given, settings
from hypothesis import strategies as st
from person_search.data import prw
from person_search.data.cache import CACHE_FOLDER
from person_search.data.mapper import UnreadableImageError, read_frame
from person_search.data.prw import camera_of, load_prw, load_prw_protocol
from person_search.errors import DatasetError
from PIL import Image
from scipy.io import loadmat, savemat

TRAIN_IDS = {*range(1, 479), *range(480, 484), 932}
TEST_IDS = {479, *range(484, 932), 933}


def make(shared, folder, *options):
    subprocess.run(
        [sys.executable, shared / "tools" / "make_prw.py", folder, *options], check=True, capture_output=True
    )
    return folder


@pytest.fixture(scope="module")
def full(shared, tmp_path_factory):
    """All annotations of PRW; 16 frames have pixels."""
    return make(shared, tmp_path_factory.mktemp("full") / "PRW", "--full")


@pytest.fixture(scope="module")
def pristine(shared, tmp_path_factory):
    return make(shared, tmp_path_factory.mktemp("small") / "PRW")


@pytest.fixture
def small(pristine, tmp_path):
    """PRW of 16 frames, for the test to spoil."""
    return shutil.copytree(pristine, tmp_path / "PRW")


def annotations(records):
    return [annotation for record in records for annotation in record["annotations"]]


def real_rows(shared, split):
    """Frame -> rows (id, x, y, w, h) of the published boxes, -1 where unlabelled."""
    folder = shared / "data" / "prw" / "annotations_json"
    content = json.loads((folder / f"{split}_pid.json").read_text())
    raw = {new: int(old) for old, new in json.loads((folder / "train_id_map.json").read_text()).items()}
    names = {image["id"]: image["file_name"] for image in content["images"]}
    rows = {name: [] for name in names.values()}
    for a in content["annotations"]:
        person = a["person_id"]
        person = -1 if person < 0 else raw[person] if split == "train" else person
        rows[names[a["image_id"]]].append((person, *a["bbox"]))
    return rows, {image["file_name"]: (image["height"], image["width"]) for image in content["images"]}


@pytest.mark.parametrize("split, frames, boxes", [("train", 5704, 18048), ("test", 6112, 25062)])
def test_all_real_annotations(shared, full, split, frames, boxes, monkeypatch):
    # Processor time, which other work on the machine does not lengthen; the limits are 20 s, and 1 s from the cache.
    start = time.process_time()
    records = load_prw(full, split)
    assert time.process_time() - start < 20
    assert (len(records), len(annotations(records))) == (frames, boxes)
    rows, sizes = real_rows(shared, split)
    first = 0 if split == "train" else 5704
    assert [record["image_id"] for record in records] == list(rows)
    for place, (record, (name, expected)) in enumerate(zip(records, rows.items(), strict=True), first):
        assert (record["height"], record["width"]) == sizes[name]
        assert record["camera_id"] == int(name[1])
        assert record["file_name"] == str(full / "frames" / name)
        assert [a["person_id"] for a in record["annotations"]] == [row[0] for row in expected]
        xywh = np.array([row[1:] for row in expected], float).reshape(-1, 4).clip(0)
        if place % 97 == 5 and len(xywh):
            xywh[0, 0] = 0  # the tool made this coordinate negative
        high, wide = sizes[name]
        corners = np.column_stack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]]).clip(0, [wide, high, wide, high])
        np.testing.assert_array_equal(np.array([a["bbox"] for a in record["annotations"]]).reshape(-1, 4), corners)
    assert [a["instance_index"] for a in annotations(records)] == list(range(boxes))
    found = {a["person_id"] for a in annotations(records)} - {-1}
    # Persons of the training set walk through test frames too, under their own numbers.
    assert found == TRAIN_IDS if split == "train" else found - TRAIN_IDS == TEST_IDS
    # From the cache: the same, without a MATLAB file being opened.
    monkeypatch.setattr(prw.matlab, "load_variable", None)
    start = time.process_time()
    again = load_prw(full, split)
    assert time.process_time() - start < 1
    assert again == records


def test_all_real_queries(full):
    protocol = load_prw_protocol(full)
    assert protocol.kind == "prw" and not protocol.galleries
    assert len(protocol.queries) == 2057
    shown = {(r["image_id"], a["person_id"]): a["bbox"] for r in load_prw(full, "test") for a in r["annotations"][::-1]}
    whole = [tuple(np.trunc(shown[q.image_id, q.person_id])) for q in protocol.queries]
    assert sum(box == q.bbox for box, q in zip(whole, protocol.queries, strict=True)) >= 2050
    assert len({(q.person_id, camera_of(q.image_id)) for q in protocol.queries}) == 2057


def test_through_the_catalog_with_pixels(small, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small.parent))
    train, test = DatasetCatalog.get("prw_train"), DatasetCatalog.get("prw_test")
    assert (len(train), len(test)) == (10, 6)
    assert (len(annotations(train)), len(annotations(test))) == (35, 26)
    for record in train + test:
        with Image.open(record["file_name"]) as image:
            assert image.size == (record["width"], record["height"])
    assert len(MetadataCatalog.get("prw_test").load_protocol().queries) == 18


def rewrite(root, name, rows, variable="box_new", **others):
    savemat(root / "annotations" / f"{name}.mat", {**others, variable: np.array(rows, float).reshape(-1, 5)})


def of_frame(root, name):
    return next(record for record in load_prw(root, "train") if record["image_id"] == name)["annotations"]


@pytest.mark.parametrize("variable", ["box_new", "anno_file", "anno_previous"])
def test_each_variable_is_read(small, variable):
    name = load_prw(small, "train")[2]["image_id"]
    rewrite(small, name, [[-2, 10, 20, 30, 40]], variable)
    assert [(a["person_id"], a["bbox"]) for a in of_frame(small, name)] == [(-1, [10.0, 20.0, 40.0, 60.0])]


def test_the_latest_variable_wins(small):
    name = load_prw(small, "train")[2]["image_id"]
    older = {"anno_previous": [[1.0, 1, 1, 9, 9]], "anno_file": [[2.0, 2, 2, 9, 9]]}
    rewrite(small, name, [[3, 3, 3, 9, 9]], "box_new", **older)
    assert [a["person_id"] for a in of_frame(small, name)] == [3]
    savemat(small / "annotations" / f"{name}.mat", older)
    assert [a["person_id"] for a in of_frame(small, name)] == [2]


value = st.integers(-40, 2200)


@given(st.lists(st.tuples(st.sampled_from([-2, 1, 478, 932]), value, value, value, value), max_size=1))
@settings(max_examples=40, deadline=None)
def test_rows_survive_the_way_through_a_file(tmp_path_factory, rows):
    # One row a frame: of several that reach far out the reader would say that they belong to other frames.
    root = tmp_path_factory.mktemp("PRW")
    (root / "annotations").mkdir()
    names = np.empty((2, 1), object)
    names[:, 0] = ["c6s1_000001", "c2s1_000001"]
    savemat(root / "frame_train.mat", {"img_index_train": names})
    expected = []
    for name, (high, wide) in (("c6s1_000001.jpg", (576, 720)), ("c2s1_000001.jpg", (1080, 1920))):
        rewrite(root, name, rows)
        for pid, x, y, w, h in rows:
            x, y, w, h = max(x, 0), max(y, 0), max(w, 0), max(h, 0)
            bbox = [x, y, min(x + w, wide), min(y + h, high)]
            if bbox[2] - bbox[0] >= 1 and bbox[3] - bbox[1] >= 1:
                expected.append((pid if pid > 0 else -1, bbox))
    records = load_prw(root, "train")
    assert [(a["person_id"], a["bbox"]) for a in annotations(records)] == expected


queries = st.lists(
    st.tuples(st.integers(1, 932), st.floats(0, 900), st.floats(0, 500), st.floats(2, 90), st.floats(2, 300)),
    min_size=1,
    max_size=6,
)


@given(queries, st.sampled_from(["\r\n", "\n"]), st.booleans(), st.sampled_from(["", ".jpg"]))
@settings(max_examples=40, deadline=None)
def test_query_lines_survive(pristine, rows, end, ended, suffix):
    names = [record["image_id"][:-4] for record in load_prw(pristine, "test")]
    lines = [
        f"{pid} {x!r} {y!r} {w!r} {h!r} {names[i % len(names)]}{suffix}" for i, (pid, x, y, w, h) in enumerate(rows)
    ]
    file = pristine / "query_info.txt"
    before = file.read_bytes()
    try:
        file.write_bytes((end.join(lines) + end * ended).encode())
        found = load_prw_protocol(pristine).queries
    finally:
        file.write_bytes(before)
    assert [q.person_id for q in found] == [row[0] for row in rows]
    assert [q.image_id for q in found] == [f"{names[i % len(names)]}.jpg" for i in range(len(rows))]
    corners = [(x, y, x + w, y + h) for _, x, y, w, h in rows]
    np.testing.assert_array_equal([q.bbox for q in found], np.array(corners).astype(np.int32))


def test_real_query_lines(shared, full):
    """Real lines, whose frames are test frames, in the place of the tool's."""
    before = (full / "query_info.txt").read_bytes()
    lines = (shared / "data" / "prw" / "query_info_30.txt").read_text().splitlines()
    try:
        (full / "query_info.txt").write_text("\n".join(lines))
        found = load_prw_protocol(full).queries
    finally:
        (full / "query_info.txt").write_bytes(before)
    assert len(found) == 30
    pid, x, y, w, h = map(float, lines[0].split()[:5])
    assert found[0].person_id == pid == 484
    assert found[0].image_id == "c2s1_159941.jpg"
    assert found[0].bbox == tuple(int(corner) for corner in (x, y, x + w, y + h))
    assert all(corner == int(corner) for query in found for corner in query.bbox)
    # A query is one of the annotated boxes, whose published coordinates are rounded.
    shown = {r["image_id"]: r["annotations"] for r in load_prw(full, "test")}
    for query in found:
        same = [a["bbox"] for a in shown[query.image_id] if a["person_id"] == query.person_id]
        assert min(np.abs(np.array(bbox) - query.bbox).max() for bbox in same) < 2


def test_camera_is_the_digit_after_c():
    assert [camera_of(f"c{i}s2_000123.jpg") for i in range(1, 7)] == [1, 2, 3, 4, 5, 6]
    for bad in ("s15160.jpg", "c12s1_000001.jpg", "c1s1_000001.png", "xc1s1_000001.jpg"):
        with pytest.raises(DatasetError, match=f"'{bad}' is not of the form"):
            camera_of(bad)


def test_annotations_need_no_pixels(small, caplog):
    with_pixels = load_prw(small, "train")
    shutil.rmtree(small / "frames")
    assert load_prw(small, "train") == with_pixels
    assert "10 of 10 images are missing" in caplog.text


def test_a_header_goes_before_the_known_size(small):
    name = load_prw(small, "train")[0]["image_id"]
    rewrite(small, name, [[77, 600, 20, 60, 40]])  # reaches out of the smaller frame, as annotators' slips do
    Image.new("RGB", (640, 360)).save(small / "frames" / name)
    record = load_prw(small, "train")[0]
    assert (record["width"], record["height"]) == (640, 360)
    assert all(a["bbox"][2] <= 640 and a["bbox"][3] <= 360 for a in record["annotations"])


@pytest.mark.parametrize("change", ["annotation", "frame list", "image"])
def test_the_cache_notices_changes(small, change):
    before = load_prw(small, "train")
    name = before[0]["image_id"]
    if change == "annotation":
        rewrite(small, name, [[77, 10, 20, 30, 40]])
    elif change == "image":
        Image.new("RGB", (1921, 1081)).save(small / "frames" / name)
    else:
        names = loadmat(small / "frame_train.mat")["img_index_train"]
        savemat(small / "frame_train.mat", {"img_index_train": names[1:]})
    after = load_prw(small, "train")
    assert after != before
    shutil.rmtree(small / CACHE_FOLDER)
    assert load_prw(small, "train") == after


def test_a_corrupt_cache_is_replaced(small):
    before = load_prw(small, "train")
    file = small / CACHE_FOLDER / "prw_train.npz"
    file.write_bytes(b"PK\x03\x04 half a file")
    assert load_prw(small, "train") == before
    assert len(np.load(file).files) > 4


def test_a_cut_annotation_file_is_named(small):
    name = load_prw(small, "train")[3]["image_id"]
    file = small / "annotations" / f"{name}.mat"
    file.write_bytes(file.read_bytes()[:150])
    with pytest.raises(DatasetError, match=rf"{name}.mat: not a readable MATLAB file"):
        load_prw(small, "train")


def test_a_missing_annotation_file_is_named(small):
    name = load_prw(small, "train")[3]["image_id"]
    os.remove(small / "annotations" / f"{name}.mat")
    with pytest.raises(DatasetError, match=rf"{name}.mat: the file is missing"):
        load_prw(small, "train")


@pytest.mark.parametrize(
    "array, message",
    [
        (np.ones((2, 4)), r"expected rows of id, x, y, w, h, found float64 of shape \(2, 4\)"),
        (np.array([[1.5, 1, 1, 9, 9]]), r"the identities \[1.5\] are not integers"),
        (np.array([[np.nan, 1, 1, 9, 9]]), r"the identities \[nan\] are not integers"),
        (np.array([["text"]]), "expected rows of id"),
    ],
)
def test_malformed_rows_are_named(small, array, message):
    name = load_prw(small, "train")[3]["image_id"]
    savemat(small / "annotations" / f"{name}.mat", {"box_new": array})
    with pytest.raises(DatasetError, match=rf"{name}.mat: {message}"):
        load_prw(small, "train")


@pytest.mark.parametrize("content", [b"", b"no image"])
def test_an_unreadable_image_is_named_and_left_to_whoever_loads_it(small, caplog, content):
    before = load_prw(small, "train")
    name = before[3]["image_id"]
    (small / "frames" / name).write_bytes(content)
    with caplog.at_level("WARNING"):
        assert load_prw(small, "train") == before  # the camera tells the size
    assert f"1 images cannot be read (for example {small / 'frames' / name})" in caplog.text
    assert "missing" not in caplog.text
    with pytest.raises(UnreadableImageError, match=rf"{name}: cannot be read as an image"):
        read_frame(before[3], "RGB")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["hello"], "frame name 'hello.jpg' is not of the form c1s1_001051.jpg; fetch"),
        ([], "img_index_train names no frame; fetch"),
    ],
)
def test_a_bad_list_of_frames_is_named(small, names, message):
    cell = np.empty((len(names), 1), object)
    cell[:, 0] = names
    savemat(small / "frame_train.mat", {"img_index_train": cell})
    with pytest.raises(DatasetError, match=f"frame_train.mat: .*{message}"):
        load_prw(small, "train")


def test_a_frame_that_is_listed_twice_is_not_called_missing(small, caplog):
    cell = loadmat(small / "frame_train.mat")["img_index_train"]
    savemat(small / "frame_train.mat", {"img_index_train": np.vstack([cell, cell[:1]])})
    with pytest.raises(DatasetError, match="two frames are named"):
        load_prw(small, "train")
    assert "missing" not in caplog.text


@pytest.mark.parametrize(
    "line, message",
    [
        ("7 842.0 444.0 96.0 259.0", "expected 'id x y w h frame', found '7 842.0 444.0 96.0 259.0'"),
        ("7 842.0 x 96.0 259.0 c1s1_002301", "expected 'id x y w h frame'"),
        ("7 842.0 444.0 96.0 259.0 c1s1_002301 1", "expected 'id x y w h frame'"),
        ("-2 842.0 444.0 96.0 259.0 c1s1_002301", "expected 'id x y w h frame'"),
        (
            "7 842.0 444.0 96.0 259.0 c1s1_999999",
            "the query's frame 'c1s1_999999.jpg' is not one of PRW's 6 test frames",
        ),
        ("7 842.0 444.0 0.0 259.0 c1s1_002301", "the query's box is empty or outside the frame 'c1s1_002301.jpg'"),
    ],
)
def test_bad_query_lines_are_named(small, line, message):
    good = (small / "query_info.txt").read_text().splitlines()[0]
    (small / "query_info.txt").write_text(f"{good}\n\n{line}\n")
    with pytest.raises(DatasetError, match=f"query_info.txt: line 3: {message}"):
        load_prw_protocol(small)


@pytest.mark.parametrize("missing", ["frame_test.mat", "annotations", "query_info.txt"])
def test_missing_parts_are_explained(small, missing):
    part = small / missing
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    with pytest.raises(DatasetError, match=f"prw_test: the (file|folder) .*{missing} is missing.*DETECTRON2_DATASETS"):
        load_prw_protocol(small)


def test_a_list_without_queries_and_a_resized_frame_are_named(small):
    file = small / "query_info.txt"
    line = file.read_text().splitlines()[0]
    file.write_text("\n")
    with pytest.raises(DatasetError, match="query_info.txt: has no queries"):
        load_prw_protocol(small)
    file.write_text(line.replace(line.split()[1], "1919.5", 1).replace(line.split()[3], "-3.0", 1))
    with pytest.raises(DatasetError, match="is empty or outside the frame .* of 1920 x 1080 pixels; fix the line"):
        load_prw_protocol(small)
