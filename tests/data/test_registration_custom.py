"""Datasets named in a config."""

from __future__ import annotations

import json
import re
import textwrap

import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from person_search.data.registration import register_custom
from person_search.errors import ConfigError
from PIL import Image


@pytest.fixture(autouse=True)
def clean_catalogs():
    before = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)


@pytest.fixture
def root(tmp_path):
    """A folder with a sequence of four frames and a JSON file over the same frames."""
    images = tmp_path / "walk" / "img1"
    images.mkdir(parents=True)
    for number in range(1, 5):
        Image.new("RGB", (60, 40)).save(images / f"{number}.png")
    (tmp_path / "walk" / "gt.txt").write_text("".join(f"{n},1,3,4,20,30,1\n" for n in range(1, 5)))
    content = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in (1, 2)],
        "annotations": [{"id": n, "image_id": n, "bbox": [1, 1, 9, 9], "person_id": 3} for n in (1, 2)],
    }
    (tmp_path / "walk.json").write_text(json.dumps(content))
    return tmp_path


ENTRIES = """
- {NAME: walk_mot, FORMAT: mot, IMAGES: walk/img1, GT: walk/gt.txt, FRAMES: [2, 4], CAMERA: 0, QUERIES_PER_IDENTITY: 2}
- {NAME: walk_coco, FORMAT: coco, JSON: walk.json, IMAGES: walk/img1, STRICT: true}
"""


def test_entries_of_a_config_become_datasets(root, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    register_custom(yaml.safe_load(ENTRIES))
    records = DatasetCatalog.get("walk_mot")
    assert [(r["image_id"], r["camera_id"]) for r in records] == [(f"{n}.png", 0) for n in (2, 3, 4)]
    assert [q.image_id for q in MetadataCatalog.get("walk_mot").load_protocol().queries] == ["2.png", "4.png"]
    assert [r["image_id"] for r in DatasetCatalog.get("walk_coco")] == ["1.png", "2.png"]
    assert MetadataCatalog.get("walk_coco").registered_entry["strict"] is True
    register_custom(yaml.safe_load(ENTRIES))  # every process of a run does so


def test_the_examples_of_the_documentation_work(repository, shared, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "PETS09-S2L1").symlink_to(shared / "data" / "pets09_s2l1")
    (tmp_path / "mall").mkdir()
    blocks = re.findall(r"(?:^    .*\n|^\n)+", (repository / "datasets" / "README.md").read_text(), re.MULTILINE)
    blocks = [textwrap.dedent(block).strip() for block in blocks]
    (content,) = [block for block in blocks if block.startswith("{")]
    for split in ("train", "test"):
        (tmp_path / "mall" / f"{split}.json").write_text(content)
    for block in blocks:
        if block.startswith("_BASE_:"):
            register_custom(yaml.safe_load(block)["DATASETS"]["CUSTOM"])
    assert [len(DatasetCatalog.get(name)) for name in ("mall_train", "mall_test")] == [2, 2]
    assert [query.person_id for query in MetadataCatalog.get("mall_test").load_protocol().queries] == [7]
    assert [len(DatasetCatalog.get(name)) for name in ("pets_train", "pets_test")] == [397, 398]
    assert all(record["camera_id"] == 0 for record in DatasetCatalog.get("pets_test"))


def test_paths_start_from_the_given_root_or_from_here(root, monkeypatch, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(elsewhere))
    monkeypatch.chdir(root)
    entries = yaml.safe_load(ENTRIES)
    register_custom(entries[:1])
    register_custom(entries[1:], root)
    monkeypatch.chdir(elsewhere)
    assert len(DatasetCatalog.get("walk_mot")) == 3 and len(DatasetCatalog.get("walk_coco")) == 2


def test_another_entry_under_a_name_is_an_error(root):
    entries = yaml.safe_load(ENTRIES)
    register_custom(entries, root)
    entries[0]["FRAMES"] = [1, 4]
    with pytest.raises(ConfigError, match="'walk_mot' is taken"):
        register_custom(entries, root)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"FORMAT": "voc"}, r"DATASETS.CUSTOM\[1\] \(pets\): FORMAT is 'voc', expected coco or mot"),
        ({"FORMAT": None}, r"\(pets\): FORMAT is None, expected coco or mot"),
        ({"FORMAT": ["mot"]}, r"\(pets\): FORMAT is \['mot'\], expected coco or mot"),
        ({"NAME": None}, r"DATASETS.CUSTOM\[1\]: NAME is None, expected the name"),
        ({"NAME": 7}, r"DATASETS.CUSTOM\[1\]: NAME is 7, expected the name"),
        ({"FRAME": [1, 2]}, r"\(pets\): unknown key 'FRAME'; FORMAT mot has IMAGES, GT, FRAMES, CAMERA, QUERIES"),
        ({"JSON": "a.json"}, r"\(pets\): unknown key 'JSON'"),
        ({"GT": ...}, r"\(pets\): GT is missing; FORMAT mot needs IMAGES, GT"),
        ({"GT": 5}, r"\(pets\): GT is 5, expected a path"),
        ({"GT": ""}, r"\(pets\): GT is '', expected a path"),
        ({"FRAMES": 5}, r"\(pets\): FRAMES is 5, expected a list"),
        ({"FRAMES": [5, 1]}, r"pets: frames is \[5, 1\], expected \[first, last\]"),
        ({"CAMERA": "0"}, r"\(pets\): CAMERA is '0', expected a whole number"),
        ({"CAMERA": True}, r"\(pets\): CAMERA is True, expected a whole number"),
        ({"MIN_SCORE": "0.5"}, r"\(pets\): MIN_SCORE is '0.5', expected a number"),
        ({"CATEGORIES": 1}, r"\(pets\): CATEGORIES is 1, expected a list"),
        ({"RESULTS": "a.json"}, r"\(pets\): unknown key 'RESULTS'"),
        ({"STRICT": 1}, r"\(pets\): STRICT is 1, expected True or False"),
    ],
)
def test_bad_entries_are_named(change, message):
    entry = {"NAME": "pets", "FORMAT": "mot", "IMAGES": "a.avi", "GT": "gt.txt", **change}
    entry = {key: value for key, value in entry.items() if value is not ...}
    good = {"NAME": "good", "FORMAT": "coco", "JSON": "a.json", "IMAGES": "a"}
    with pytest.raises(ConfigError, match=message):
        register_custom([good, entry])
    assert "pets" not in DatasetCatalog


def test_an_unusable_entry_leaves_the_others_unregistered():
    with pytest.raises(ConfigError, match=r"DATASETS.CUSTOM\[1\] is 'pets', expected a mapping"):
        register_custom([{"NAME": "good", "FORMAT": "coco", "JSON": "a.json", "IMAGES": "a"}, "pets"])
    assert "good" not in DatasetCatalog
    with pytest.raises(ConfigError, match=r"\(good\): JSON is missing; FORMAT coco needs JSON, IMAGES"):
        register_custom([{"NAME": "good", "FORMAT": "coco", "IMAGES": "a"}])
