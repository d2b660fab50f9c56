"""The table of built-in datasets."""

from __future__ import annotations

import importlib
import logging

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from person_search.data import registration as builtin
from person_search.errors import DatasetError

NAMES = ("prw_train", "prw_test", "cuhk_sysu_train", "cuhk_sysu_test")


@pytest.mark.parametrize("name", (*NAMES, "synthetic_demo_train", "synthetic_demo_test"))
def test_every_split_is_registered_with_its_metadata(name):
    assert name in DatasetCatalog
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == ["person"]
    assert metadata.evaluator_type == "person_search"
    assert hasattr(metadata, "load_protocol") == name.endswith("_test")


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_download_is_explained(name, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "here"))
    folder = "PRW" if name.startswith("prw") else "CUHK-SYSU"
    message = rf"{name}: the folder .*here.{folder} is missing.*official {folder} download.*DETECTRON2_DATASETS"
    with pytest.raises(DatasetError, match=message):
        DatasetCatalog.get(name)
    assert not (tmp_path / "here").exists()


def test_missing_queries_are_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(DatasetError, match="prw_test: the folder .*PRW is missing"):
        MetadataCatalog.get("prw_test").load_protocol()
    with pytest.raises(DatasetError, match="cuhk_sysu_test: the folder .*CUHK-SYSU is missing"):
        MetadataCatalog.get("cuhk_sysu_test").load_protocol()


def test_importing_again_is_harmless(caplog):
    with caplog.at_level(logging.WARNING):
        importlib.reload(builtin).register_builtin()
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "message"),
    [("prw_train", "prw_train is not available"), ("synthetic_demo_train", "'synthetic_demo_train' is taken")],
)
def test_a_name_taken_by_other_code_stays_and_is_reported(name, message, caplog):
    ours = DatasetCatalog.pop(name), MetadataCatalog.pop(name)
    try:
        DatasetCatalog.register(name, lambda: ["theirs"])
        builtin.register_builtin()
        assert DatasetCatalog.get(name) == ["theirs"]
        assert message in caplog.text
    finally:
        DatasetCatalog[name], MetadataCatalog[name] = ours
