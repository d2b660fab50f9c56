"""Synthetic datasets by name: lazily generated, with the records and metadata every dataset here has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from person_search.data.catalog import register_dataset
from person_search.data.images import read_image
from person_search.data.records import SearchProtocol
from person_search.errors import ConfigError, DatasetError
from person_search.synthetic import (
    PRESETS,
    datasets,
    generate,
    load_synthetic,
    load_synthetic_protocol,
    register_builtin_synthetic,
    register_synthetic,
)
from pycocotools import mask as mask_util

SMALL = replace(
    PRESETS["tiny"], train_frames=6, test_frames=4, train_identities=4, test_identities=3, max_persons=3, noise=0.0
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(SMALL, tmp_path_factory.mktemp("root"), progress=False)


@pytest.fixture(autouse=True)
def catalogs_as_before() -> Iterator[None]:
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize("split", ["train", "test"])
def test_records_are_detectron2s(folder: Path, split: str) -> None:
    records = load_synthetic(folder, split)
    assert len(records) == SMALL.frames(split)
    rows = [annotation["instance_index"] for record in records for annotation in record["annotations"]]
    assert rows == list(range(len(rows)))
    for record in records:
        assert Path(record["file_name"]) == folder / split / record["image_id"]
        assert record["image_id"].startswith(f"c{record['camera_id']}_")
        shape = (record["height"], record["width"])
        assert read_image(record["file_name"]).shape[:2] == shape
        for annotation in record["annotations"]:
            assert annotation["bbox_mode"] == BoxMode.XYXY_ABS and annotation["category_id"] == 0
            assert annotation["person_id"] == -1 or annotation["person_id"] in SMALL.identities(split)
            x0, y0, x1, y1 = annotation["bbox"]
            ys, xs = np.nonzero(mask_util.decode(annotation["segmentation"]))
            assert x0 <= xs.min() and xs.max() < x1 and y0 <= ys.min() and ys.max() < y1


def test_queries_are_boxes_of_the_test_records(folder: Path) -> None:
    protocol = load_synthetic_protocol(folder)
    assert isinstance(protocol, SearchProtocol) and protocol.kind == "custom" and not protocol.galleries
    boxes = {
        (record["image_id"], tuple(annotation["bbox"]), annotation["person_id"])
        for record in load_synthetic(folder, "test")
        for annotation in record["annotations"]
    }
    assert protocol.queries
    assert {(query.image_id, query.bbox, query.person_id) for query in protocol.queries} <= boxes


def test_registering_touches_no_disk_and_generates_at_first_use(tmp_path: Path) -> None:
    root = tmp_path / "later"
    register_synthetic("lazy", SMALL, root, progress=False)
    assert not root.exists()
    records = DatasetCatalog.get("lazy_train")
    assert len(records) == SMALL.train_frames
    assert (root / SMALL.folder_name / "config.json").is_file()


def test_metadata_name_the_evaluator_and_the_queries(folder: Path) -> None:
    register_synthetic("known", SMALL, folder.parent)
    for split in ("train", "test"):
        metadata = MetadataCatalog.get(f"known_{split}")
        assert metadata.thing_classes == ["person"] and metadata.evaluator_type == "person_search"
    assert MetadataCatalog.get("known_test").load_protocol() == load_synthetic_protocol(folder)
    assert not hasattr(MetadataCatalog.get("known_train"), "load_protocol")


def test_the_root_is_looked_up_at_first_use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register_synthetic("rootless", SMALL)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder.parent))
    monkeypatch.setattr(datasets, "generate", lambda config, root, progress: Path(root) / config.folder_name)
    assert DatasetCatalog.get("rootless_test")[0]["file_name"].startswith(str(folder))


def test_a_name_stands_for_one_dataset(folder: Path) -> None:
    register_synthetic("taken", SMALL, folder.parent)
    register_synthetic("taken", SMALL, folder.parent)  # the same again changes nothing
    with pytest.raises(ConfigError, match="taken_train"):
        register_synthetic("taken", replace(SMALL, seed=3), folder.parent)


def test_every_preset_is_registered(tmp_path: Path) -> None:
    names = {f"synthetic_{preset}_{split}" for preset in PRESETS for split in ("train", "test")}
    kept = {name: DatasetCatalog.pop(name) for name in names & set(DatasetCatalog.list())}
    metadata = {name: MetadataCatalog.pop(name) for name in kept}
    try:
        register_builtin_synthetic(tmp_path / "root")
        assert names <= set(DatasetCatalog.list())
        assert not (tmp_path / "root").exists()
        assert len(DatasetCatalog.get("synthetic_tiny_test")) == PRESETS["tiny"].test_frames
    finally:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        for name, load in kept.items():
            entry = metadata[name].registered_entry
            register_dataset(name, entry, load, getattr(metadata[name], "load_protocol", None))


def test_unknown_splits_and_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="'val'"):
        load_synthetic(folder, "val")
    with pytest.raises(DatasetError, match=r"train\.json"):
        load_synthetic(tmp_path, "train")
    (tmp_path / "test.json").write_text((folder / "test.json").read_text()[:-40])
    with pytest.raises(DatasetError, match=r"test\.json"):
        load_synthetic_protocol(tmp_path)
