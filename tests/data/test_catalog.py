"""Names, paths and registration."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from person_search.data.catalog import check_at_least, dataset_root, register_dataset, resolve_path
from person_search.errors import ConfigError


@pytest.fixture
def name():
    yield "catalog_test"
    DatasetCatalog.pop("catalog_test", None)
    MetadataCatalog.pop("catalog_test", None)


def test_root_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    assert dataset_root() == tmp_path / "datasets"
    monkeypatch.setenv("DETECTRON2_DATASETS", "elsewhere")
    assert dataset_root() == tmp_path / "elsewhere"
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/data")
    assert dataset_root() == Path.home() / "data"


def test_paths_start_from_the_root_then_from_here(monkeypatch, tmp_path):
    here, root = tmp_path / "here", tmp_path / "root"
    for folder, files in ((here, ("both", "only_here")), (root, ("both", "only_root"))):
        folder.mkdir()
        for file in files:
            (folder / file).touch()
    monkeypatch.chdir(here)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    assert resolve_path("both") == root / "both"
    assert resolve_path("only_here") == here / "only_here"
    assert resolve_path("only_root") == root / "only_root"
    assert resolve_path("neither") == root / "neither"
    assert resolve_path(here / "both") == here / "both"
    assert resolve_path("both", here) == here / "both"


def test_registration_sets_metadata_and_reads_nothing(name):
    calls = []
    register_dataset(name, {"a": 1}, lambda: calls.append("records") or [1], lambda: calls.append("protocol") or 2)
    assert not calls
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == ["person"]
    assert metadata.evaluator_type == "person_search"
    assert DatasetCatalog.get(name) == [1] and metadata.load_protocol() == 2
    assert calls == ["records", "protocol"]


def test_a_set_without_queries_has_no_protocol(name):
    register_dataset(name, {}, list)
    assert not hasattr(MetadataCatalog.get(name), "load_protocol")


def test_the_same_entry_again_changes_nothing(name):
    register_dataset(name, {"a": 1}, lambda: "first", lambda: "first")
    register_dataset(name, {"a": 1}, lambda: "second", lambda: "second")
    assert DatasetCatalog.get(name) == MetadataCatalog.get(name).load_protocol() == "first"


def test_another_entry_under_the_same_name_is_an_error(name):
    register_dataset(name, {"a": 1}, list)
    with pytest.raises(ConfigError, match=r"'catalog_test' is taken.*\{'a': 1\}.*\{'a': 2\}.*another name"):
        register_dataset(name, {"a": 2}, list)
    assert DatasetCatalog.get(name) == []


def test_a_name_that_other_code_took_is_an_error(name):
    DatasetCatalog.register(name, list)
    with pytest.raises(ConfigError, match="'catalog_test' is taken.*a dataset of other code"):
        register_dataset(name, {"a": 1}, list)


def test_a_removed_name_is_free_again(name):
    register_dataset(name, {"a": 1}, lambda: "first", lambda: "first")
    DatasetCatalog.remove(name)
    register_dataset(name, {"a": 2}, lambda: "second", lambda: "second")
    assert DatasetCatalog.get(name) == MetadataCatalog.get(name).load_protocol() == "second"


def test_metadata_set_before_registration_stays(name):
    MetadataCatalog.get(name).note = "kept"
    register_dataset(name, {"a": 1}, list)
    assert MetadataCatalog.get(name).note == "kept"


@pytest.mark.parametrize("value", [0, -3, 1.5, "2", True, None])
def test_counts_are_checked(value):
    with pytest.raises(ConfigError, match=f"pets: queries is {value!r}, expected an integer of 1 or more"):
        check_at_least("pets", "queries", value, 1)
    check_at_least("pets", "queries", 1, 1)
