"""Own data in COCO's JSON format: records, sizes, ids and queries."""

from __future__ import annotations

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import given, settings
from hypothesis import strategies as st
from person_search.data.coco_json import load_coco_json, load_coco_protocol, register_coco_json
from person_search.errors import ConfigError, DatasetError
from PIL import Image


def test_records_follow_the_file(coco_file, coco_name, tmp_path):
    register_coco_json(coco_name, *coco_file())
    records = DatasetCatalog.get(coco_name)
    assert [r["image_id"] for r in records] == ["x/a.jpg", "b.jpg", "c.jpg"]
    assert records[0]["file_name"] == str(tmp_path / "images" / "x" / "a.jpg")
    assert [r.get("camera_id") for r in records] == [2, 1, None]
    assert [[(a["person_id"], a["bbox"], a["instance_index"]) for a in r["annotations"]] for r in records] == [
        [(5, [1.0, 2.0, 11.0, 22.0], 0), (-1, [5.0, 5.0, 14.0, 14.0], 1)],
        [(5, [50.0, 2.0, 60.0, 22.0], 2)],
        [(-1, [1.5, 2.0, 11.5, 22.0], 3)],
    ]
    assert not any("segmentation" in a for r in records for a in r["annotations"])


def test_chosen_queries(coco_file, coco_name):
    register_coco_json(coco_name, *coco_file())
    protocol = MetadataCatalog.get(coco_name).load_protocol()
    assert protocol.kind == "custom"
    assert [(q.image_id, q.person_id) for q in protocol.queries] == [("b.jpg", 5), ("x/a.jpg", 5)]


def test_without_identities_there_is_nothing_to_search_and_a_reason(coco_file):
    def change(content):
        for annotation in content["annotations"]:
            annotation["person_id"] = None

    protocol = load_coco_protocol("d", *coco_file(change))
    assert protocol.queries == () and protocol.no_search == "no person has an identity"


def test_the_files_own_queries(coco_file):
    def change(content):
        content["queries"] = [2]

    protocol = load_coco_protocol("d", *coco_file(change))
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
def test_bad_queries_are_named(coco_file, queries, message):
    def change(content):
        content["annotations"].append(
            {"id": 7, "image_id": 30, "category_id": 3, "bbox": [70, 2, 9, 9], "person_id": 5}
        )
        content["queries"] = queries

    with pytest.raises(DatasetError, match=message):
        load_coco_protocol("d", *coco_file(change))


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


@pytest.mark.parametrize("write_number", [str, float], ids=["text", "float"])
@pytest.mark.parametrize("ids", [True, False], ids=["ids", "values"])
def test_numbers_written_otherwise_are_the_same_numbers(coco_file, write_number, ids):
    """Converters from tables coco_file 7 as "7" or 7.0."""
    expected = load_coco_json("d", *coco_file())

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

    paths = coco_file(change)
    assert load_coco_json("d", *paths) == expected
    assert [q.image_id for q in load_coco_protocol("d", *paths).queries] == ["b.jpg"]


def test_ids_that_are_texts_stay_texts(coco_file):
    def change(content):
        for image, name in zip(content["images"], ("1", "01", "a"), strict=False):
            old, image["id"] = image["id"], name
            for annotation in content["annotations"]:
                if annotation["image_id"] == old:
                    annotation["image_id"] = name

    assert [len(r["annotations"]) for r in load_coco_json("d", *coco_file(change))] == [
        len(r["annotations"]) for r in load_coco_json("d", *coco_file())
    ]


def test_a_size_of_minus_one_is_unknown(coco_file):
    def change(content):
        content["images"][0].update(width=-1, height=-1)

    json_file, root = coco_file(change)
    (root / "x").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (70, 50)).save(root / "x" / "a.jpg")
    record = load_coco_json("d", json_file, root)[0]
    assert (record["width"], record["height"]) == (70, 50)


def test_sizes_may_stand_in_the_image_only(coco_file):
    def change(content):
        for image in content["images"]:
            del image["height"], image["width"]

    json_file, root = coco_file(change)
    with pytest.raises(DatasetError, match="a.jpg: the image is missing"):
        load_coco_json("d", json_file, root)
    for file, size in (("x/a.jpg", (60, 40)), ("b.jpg", (55, 40)), ("c.jpg", (90, 80))):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(root / file)
    records = load_coco_json("d", json_file, root)
    assert [(r["width"], r["height"]) for r in records] == [(60, 40), (55, 40), (90, 80)]
    assert records[1]["annotations"][0]["bbox"][2] == 55.0


def test_registration_reads_nothing_and_is_repeatable(coco_name, tmp_path):
    for _ in range(2):
        register_coco_json(coco_name, tmp_path / "no.json", tmp_path)
    with pytest.raises(ConfigError, match="'coco_test' is taken"):
        register_coco_json(coco_name, tmp_path / "other.json", tmp_path)
    with pytest.raises(ConfigError, match="coco_test: queries_per_identity is 0"):
        register_coco_json(coco_name, tmp_path / "no.json", tmp_path, queries_per_identity=0)


def test_a_byte_order_mark_does_no_harm(coco_file):
    file, images = coco_file()
    records = load_coco_json("d", file, images)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert load_coco_json("d", file, images) == records


def test_an_image_that_cannot_tell_its_size_is_counted_and_its_persons_keep_their_rows(coco_file, caplog):
    def spoil(content):
        del content["images"][0]["height"]
        content["annotations"][0]["segmentation"] = [[1, 2, 11, 2, 11, 22]]

    file, images = coco_file(spoil)
    (images / "x").mkdir(parents=True)
    (images / "x" / "a.jpg").write_bytes(b"no image")
    records = load_coco_json("d", file, images)
    assert "d: 1 images cannot be read (for example" in caplog.text and "x/a.jpg" in caplog.text
    assert (records[0]["width"], records[0]["height"]) == (14, 22)
    assert [a["bbox"] for a in records[0]["annotations"]] == [[1, 2, 11, 22], [5, 5, 14, 14]]
    with pytest.raises(DatasetError, match=r"queries\[0\]: the image of the annotation 1 cannot be read: .*x/a.jpg"):
        load_coco_protocol("d", *coco_file(lambda content: (spoil(content), content.update(queries=[1]))))
