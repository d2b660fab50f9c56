"""Own data in COCO's JSON format."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import given, settings
from hypothesis import strategies as st
from person_search.data.coco_json import Choice, load_coco_json, load_coco_protocol, register_coco_json
from person_search.errors import ConfigError, DatasetError
from PIL import Image
from pycocotools import mask as mask_util

CONTENT = {
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
def write(tmp_path):
    """Writes CONTENT, changed, and gives the arguments of the readers."""

    def to_file(change=lambda content: None):
        content = copy.deepcopy(CONTENT)
        change(content)
        (tmp_path / "data.json").write_text(json.dumps(content, indent=1))
        return tmp_path / "data.json", tmp_path / "images"

    return to_file


@pytest.fixture
def name():
    yield "coco_test"
    DatasetCatalog.pop("coco_test", None)
    MetadataCatalog.pop("coco_test", None)


def test_records_follow_the_file(write, name, tmp_path):
    register_coco_json(name, *write())
    records = DatasetCatalog.get(name)
    assert [r["image_id"] for r in records] == ["x/a.jpg", "b.jpg", "c.jpg"]
    assert records[0]["file_name"] == str(tmp_path / "images" / "x" / "a.jpg")
    assert [r.get("camera_id") for r in records] == [2, 1, None]
    assert [[(a["person_id"], a["bbox"], a["instance_index"]) for a in r["annotations"]] for r in records] == [
        [(5, [1.0, 2.0, 11.0, 22.0], 0), (-1, [5.0, 5.0, 14.0, 14.0], 1)],
        [(5, [50.0, 2.0, 60.0, 22.0], 2)],
        [(-1, [1.5, 2.0, 11.5, 22.0], 3)],
    ]
    assert not any("segmentation" in a for r in records for a in r["annotations"])


def test_chosen_queries(write, name):
    register_coco_json(name, *write())
    protocol = MetadataCatalog.get(name).load_protocol()
    assert protocol.kind == "custom"
    assert [(q.image_id, q.person_id) for q in protocol.queries] == [("b.jpg", 5), ("x/a.jpg", 5)]


def test_without_identities_there_is_nothing_to_search_and_a_reason(write):
    def change(content):
        for annotation in content["annotations"]:
            annotation["person_id"] = None

    protocol = load_coco_protocol("d", *write(change))
    assert protocol.queries == () and protocol.no_search == "no person has an identity"


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
def test_the_track_of_cvat_is_an_identity_where_there_is_no_other(write, attributes, expected):
    def change(content):
        content["annotations"][0].update(person_id=None, attributes=attributes)
        content["annotations"][1]["attributes"] = {"track_id": 9}

    assert identities(load_coco_json("d", *write(change))) == [expected, -1, 5, -1]


def test_a_track_that_is_no_number_is_named(write):
    with pytest.raises(DatasetError, match=r"annotations\[4\]: attributes: 'track_id' is 'left', expected int"):
        load_coco_json("d", *write(lambda c: c["annotations"][4].update(attributes={"track_id": "left"})))


def test_categories_that_are_persons_can_be_named(write, caplog):
    def change(content):
        content["categories"] = [{"id": 3, "name": "Rider"}, {"id": 8, "name": "walker"}]

    with pytest.raises(DatasetError, match="no category is named person; there are Rider, walker: set CATEGORIES"):
        load_coco_json("d", *write(change))
    with caplog.at_level("INFO", logger="person_search"):
        assert identities(load_coco_json("d", *write(change), choice=Choice(("rider",)))) == [5, -1, 5, -1]
    assert "d: 4 boxes used; skipped 1 of category walker, 1 marked iscrowd or ignore" in caplog.text
    assert len(identities(load_coco_json("d", *write(change), choice=Choice(("rider", "Walker"))))) == 5
    with pytest.raises(DatasetError, match="CATEGORIES has bus, which is not a category; there are Rider, walker"):
        load_coco_json("d", *write(change), choice=Choice(("rider", "bus")))


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


def test_boxes_of_a_detector_stand_in_for_annotations(write, results, name, caplog):
    def images_alone(content):
        del content["annotations"]

    register_coco_json(name, *write(images_alone), results_file=results(), min_score=0.5)
    with caplog.at_level("INFO", logger="person_search"):
        records = DatasetCatalog.get(name)
    assert [[a["bbox"] for a in r["annotations"]] for r in records] == [[[1, 2, 11, 22], [20, 2, 30, 22]], [], []]
    assert identities(records) == [-1, -1]
    assert MetadataCatalog.get(name).load_protocol().no_search == "no person has an identity"
    left_out = "1 of category dog, 1 below the score 0.5, 1 of category 77"
    assert f"{name}: 2 boxes used; skipped {left_out}" in caplog.text


def test_a_detector_of_coco_calls_persons_1_where_the_images_have_no_categories(write, results):
    def images_alone(content):
        del content["annotations"], content["categories"]

    found = results(lambda entries: [entry.update(category_id=1) for entry in entries[:2]])
    records = load_coco_json("d", *write(images_alone), choice=Choice((), found, 0.5))
    assert [len(r["annotations"]) for r in records] == [2, 0, 0]


def test_results_that_do_not_fit_are_named(write, results, name, tmp_path):
    choice = Choice((), results(lambda entries: entries[1].update(image_id="z.jpg")), 0.5)
    with pytest.raises(DatasetError, match="results.json: entry 1: image_id 'z.jpg' is neither the id nor the file_na"):
        load_coco_json("d", *write(), choice=choice)
    with pytest.raises(DatasetError, match="no.json is missing, expected boxes of a detector"):
        load_coco_json("d", *write(), choice=Choice((), tmp_path / "no.json", 0.5))
    for key, value in (("bbox", [1, 2, 3]), ("bbox", None), ("image_id", None), ("image_id", True), ("score", "nan")):
        file = results(lambda entries, key=key, value=value: entries[3].update({key: value}))
        with pytest.raises(DatasetError, match="results.json: entry 3: expected image_id, bbox"):
            load_coco_json("d", *write(), choice=Choice((), file, 0.5))
    for options in ({"results_file": "a.json"}, {"min_score": 0.5}):
        with pytest.raises(ConfigError, match="min_score is .* and results_file .*: give both or neither"):
            register_coco_json(name, *write(), **options)
    with pytest.raises(ConfigError, match="categories is 'rider', expected names"):
        register_coco_json(name, *write(), categories="rider")


def test_the_files_own_queries(write):
    def change(content):
        content["queries"] = [2]

    protocol = load_coco_protocol("d", *write(change))
    assert [(q.image_id, q.bbox, q.person_id) for q in protocol.queries] == [("b.jpg", (50.0, 2.0, 60.0, 22.0), 5)]


@pytest.mark.parametrize(
    "queries, message",
    [
        ([1, 99], r"queries\[1\]: 99 is not the id of a person's annotation"),
        ([3], r"queries\[0\]: 3 is not the id of a person's annotation"),
        ([[1]], r"queries\[0\]: \[1\] is not the id"),
        ([6], r"queries\[0\]: the annotation 6 \(frame 'x/a.jpg'\) has no person_id"),
        ([7], r"queries\[0\]: the annotation 7 \(frame 'c.jpg'\) is empty or outside its frame"),
        ([], "has no queries"),
        ("all", "'queries' is 'all', expected list"),
    ],
)
def test_bad_queries_are_named(write, queries, message):
    def change(content):
        content["annotations"].append(
            {"id": 7, "image_id": 30, "category_id": 3, "bbox": [70, 2, 9, 9], "person_id": 5}
        )
        content["queries"] = queries

    with pytest.raises(DatasetError, match=message):
        load_coco_protocol("d", *write(change))


def test_real_annotations_of_prw(shared, tmp_path):
    """The published JSON of PRW's training set is such a file."""
    folder = shared / "data" / "prw"
    records = load_coco_json("d", folder / "annotations_json" / "train_pid.json", folder / "frames")
    assert len(records) == 5704
    identities = [a["person_id"] for r in records for a in r["annotations"]]
    assert len(identities) == 18048 and set(identities) == set(range(-1, 483))


box = st.tuples(st.integers(0, 50), st.integers(0, 30), st.integers(1, 10), st.integers(1, 10))


@given(
    st.lists(
        st.tuples(st.none() | st.integers(0, 6), st.lists(st.tuples(box, st.none() | st.integers(-2, 9)), max_size=3)),
        min_size=1,
        max_size=5,
    ),
    st.randoms(),
)
@settings(max_examples=50, deadline=None)
def test_content_survives_the_file(tmp_path_factory, frames, random):
    images, annotations, expected = [], [], []
    for i, (camera, persons) in enumerate(frames):
        images.append({"id": 100 - i, "file_name": f"{i}.png", "height": 40, "width": 60, "camera_id": camera})
        for (x, y, w, h), pid in persons:
            annotations.append({"id": len(annotations), "image_id": 100 - i, "bbox": [x, y, w, h], "person_id": pid})
        labelled = [([x, y, x + w, y + h], -1 if pid is None else max(pid, -1)) for (x, y, w, h), pid in persons]
        expected.append((f"{i}.png", camera, sorted(labelled)))
    random.shuffle(annotations)
    file = tmp_path_factory.mktemp("coco") / "data.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    records = load_coco_json("d", file, file.parent)
    found = [
        (r["image_id"], r.get("camera_id"), sorted((a["bbox"], a["person_id"]) for a in r["annotations"]))
        for r in records
    ]
    assert found == expected


def test_masks_of_every_form_become_run_lengths(write):
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
        records = load_coco_json("d", *write(lambda c, form=form: c["annotations"][0].update(segmentation=form)))
        segmentation = records[0]["annotations"][0]["segmentation"]
        np.testing.assert_array_equal(mask_util.decode(segmentation), whole)
        assert "segmentation" not in records[0]["annotations"][1]


@pytest.mark.parametrize("form", [{"size": [9, 9], "counts": "x"}, {"counts": "x"}, ["x"], "x", 7])
def test_bad_masks_are_named(write, form):
    with pytest.raises(DatasetError, match=r"annotations\[0\]: 'segmentation' is neither"):
        load_coco_json("d", *write(lambda c: c["annotations"][0].update(segmentation=form)))


@pytest.mark.parametrize("form", [[[26, 31, 50, 31]], [[]], [26, 31, 50, 31], [[1, 2], [5, 6, 7, np.nan, 1, 2]]])
def test_a_mask_without_an_area_costs_its_person_alone(write, caplog, form):
    good = [[10, 5, 30, 5, 30, 15, 10, 15]]

    def change(content):
        content["annotations"][0].update(segmentation=form)
        content["annotations"][1].update(segmentation=good)

    masks = ["segmentation" in a for r in load_coco_json("d", *write(change)) for a in r["annotations"]]
    assert sum(masks) == 1
    assert "d: 1 masks are empty, their persons have none (for example" in caplog.text
    assert "annotations[0]: its polygon has" in caplog.text


def test_of_several_polygons_those_with_an_area_count(write):
    polygons = [[10, 5, 30, 5], [10, 5, 30, 5, 30, 15, 10, 15]]
    records = load_coco_json("d", *write(lambda c: c["annotations"][0].update(segmentation=polygons)))
    assert mask_util.area(records[0]["annotations"][0]["segmentation"]) == 200


@pytest.mark.parametrize("form", [None, [], {}, ""])
def test_no_mask_is_no_mask(write, caplog, form):
    records = load_coco_json("d", *write(lambda c: c["annotations"][0].update(segmentation=form)))
    assert not any("segmentation" in a for r in records for a in r["annotations"]) and "mask" not in caplog.text


def test_a_polygon_as_a_flat_list(write):
    flat = [10, 5, 30, 5, 30, 15, 10, 15]
    records = load_coco_json("d", *write(lambda c: c["annotations"][0].update(segmentation=flat)))
    assert mask_util.area(records[0]["annotations"][0]["segmentation"]) == 200


@pytest.mark.parametrize("write_number", [str, float], ids=["text", "float"])
@pytest.mark.parametrize("ids", [True, False], ids=["ids", "values"])
def test_numbers_written_otherwise_are_the_same_numbers(write, write_number, ids):
    """Converters from tables write 7 as "7" or 7.0."""
    expected = load_coco_json("d", *write())

    def change(content):
        content["queries"] = [write_number(2)]
        for annotation in content["annotations"]:
            for key in ("image_id",) if ids else ("category_id", "person_id", "iscrowd"):
                if annotation.get(key) is not None:
                    annotation[key] = write_number(annotation[key])
        for image in content["images"]:
            for key in () if ids else ("height", "width", "camera_id"):
                if image.get(key) is not None:
                    image[key] = write_number(image[key])

    paths = write(change)
    assert load_coco_json("d", *paths) == expected
    assert [q.image_id for q in load_coco_protocol("d", *paths).queries] == ["b.jpg"]


def test_ids_that_are_texts_stay_texts(write):
    def change(content):
        for image, name in zip(content["images"], ("1", "01", "a"), strict=False):
            old, image["id"] = image["id"], name
            for annotation in content["annotations"]:
                if annotation["image_id"] == old:
                    annotation["image_id"] = name

    assert [len(r["annotations"]) for r in load_coco_json("d", *write(change))] == [
        len(r["annotations"]) for r in load_coco_json("d", *write())
    ]


@pytest.mark.parametrize("mark", ["iscrowd", "ignore"])
@pytest.mark.parametrize(
    "value, kept", [(1, 0), ("1", 0), (True, 0), (1.0, 0), ("0", 1), (0, 1), (None, 1), (False, 1)]
)
def test_marks_of_what_is_no_person(write, caplog, mark, value, kept):
    with caplog.at_level("INFO", logger="person_search"):
        records = load_coco_json("d", *write(lambda c: c["annotations"][1].update({mark: value})))
    assert len(records[1]["annotations"]) == kept
    # The file has a crowd of its own.
    assert f" {2 - kept} marked iscrowd or ignore" in caplog.text


def test_a_size_of_minus_one_is_unknown(write):
    def change(content):
        content["images"][0].update(width=-1, height=-1)

    json_file, root = write(change)
    (root / "x").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (70, 50)).save(root / "x" / "a.jpg")
    record = load_coco_json("d", json_file, root)[0]
    assert (record["width"], record["height"]) == (70, 50)


def test_sizes_may_stand_in_the_image_only(write):
    def change(content):
        for image in content["images"]:
            del image["height"], image["width"]

    json_file, root = write(change)
    with pytest.raises(DatasetError, match="a.jpg: the image is missing"):
        load_coco_json("d", json_file, root)
    for file, size in (("x/a.jpg", (60, 40)), ("b.jpg", (55, 40)), ("c.jpg", (90, 80))):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(root / file)
    records = load_coco_json("d", json_file, root)
    assert [(r["width"], r["height"]) for r in records] == [(60, 40), (55, 40), (90, 80)]
    assert records[1]["annotations"][0]["bbox"][2] == 55.0


def test_the_only_category_is_persons_whatever_its_name(write):
    def change(content):
        content["categories"] = [{"id": 3, "name": "player"}]
        content["annotations"] = content["annotations"][:2]

    assert sum(len(r["annotations"]) for r in load_coco_json("d", *write(change))) == 2


def spoil(*path, value=None, drop=False):
    """A change of CONTENT at a path of keys and indices."""

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
def test_malformed_entries_are_named(write, change, message):
    with pytest.raises(DatasetError, match=message):
        load_coco_json("d", *write(change))


def test_malformed_json_is_named_with_its_line(write):
    json_file, root = write()
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


def test_strict_names_the_bad_box(write, name):
    def change(content):
        content["annotations"][1]["bbox"] = [50, 2, 0, 20]

    paths = write(change)
    assert len(load_coco_json("d", *paths)[1]["annotations"]) == 0
    register_coco_json(name, *paths, strict=True)
    with pytest.raises(DatasetError, match="coco_test: box 0 of b.jpg"):
        DatasetCatalog.get(name)


def test_registration_reads_nothing_and_is_repeatable(name, tmp_path):
    for _ in range(2):
        register_coco_json(name, tmp_path / "no.json", tmp_path)
    with pytest.raises(ConfigError, match="'coco_test' is taken"):
        register_coco_json(name, tmp_path / "other.json", tmp_path)
    with pytest.raises(ConfigError, match="coco_test: queries_per_identity is 0"):
        register_coco_json(name, tmp_path / "no.json", tmp_path, queries_per_identity=0)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("bbox", [10**400, 1, 2, 3], r"annotations\[0\]: 'bbox' is .*expected \[x, y, width, height\]"),
        ("person_id", 10**30, r"annotations\[0\]: 'person_id' is 10*, expected int of 64 bits"),
    ],
)
def test_numbers_too_large_for_arrays_are_named(write, key, value, message):
    with pytest.raises(DatasetError, match=message):
        load_coco_json("d", *write(lambda content: content["annotations"][0].update({key: value})))


def test_a_frame_without_pixels_is_named(write):
    def spoil(content):
        content["images"][0]["height"] = 0
        content["annotations"][0]["segmentation"] = [[1, 2, 11, 2, 11, 22]]

    with pytest.raises(DatasetError, match=r"images\[0\]: the frame has the size 60 x 0, expected"):
        load_coco_json("d", *write(spoil))


def test_a_byte_order_mark_does_no_harm(write):
    file, images = write()
    records = load_coco_json("d", file, images)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load_coco_json("d", file, images) == records


def test_an_image_that_cannot_tell_its_size_is_counted_and_its_persons_keep_their_rows(write, caplog):
    def spoil(content):
        del content["images"][0]["height"]
        content["annotations"][0]["segmentation"] = [[1, 2, 11, 2, 11, 22]]

    file, images = write(spoil)
    (images / "x").mkdir(parents=True)
    (images / "x" / "a.jpg").write_bytes(b"no image")
    records = load_coco_json("d", file, images)
    assert "d: 1 images cannot be read (for example" in caplog.text and "x/a.jpg" in caplog.text
    assert (records[0]["width"], records[0]["height"]) == (14, 22)
    assert [a["bbox"] for a in records[0]["annotations"]] == [[1, 2, 11, 22], [5, 5, 14, 14]]
    with pytest.raises(DatasetError, match=r"queries\[0\]: the image of the annotation 1 cannot be read: .*x/a.jpg"):
        load_coco_protocol("d", *write(lambda content: (spoil(content), content.update(queries=[1]))))
