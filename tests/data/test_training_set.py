"""The training set: rows, identities, fingerprints, and several data sets together."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from person_search.data import training_set
from person_search.data.registration import registered_records
from person_search.data.training_set import load_training_set, number_rows
from person_search.errors import ConfigError, DatasetError


def records(persons: list[list[int]]) -> list[dict]:
    return [
        {
            "image_id": f"frame{i}",
            "file_name": f"frame{i}.jpg",
            "annotations": [{"bbox": [0.0, 0.0, 5.0, 9.0 + p], "person_id": person} for p, person in enumerate(frame)],
        }
        for i, frame in enumerate(persons)
    ]


def test_identities_are_numbered_without_gaps():
    loaded = number_rows(records([[932, -1, 7], [], [7, 40, -1]]))
    assert loaded.person_ids.tolist() == [932, -1, 7, 7, 40, -1]
    assert loaded.identities.tolist() == [2, -1, 0, 0, 1, -1]
    assert loaded.identities.dtype == np.int64
    assert number_rows(records([[-1], [-1]])).identities.tolist() == [-1, -1]


def test_fingerprint_counts_identities_only_if_asked():
    first, second = number_rows(records([[1, 2], [2]])), number_rows(records([[2, 1], [2]]))
    assert first.fingerprint() == second.fingerprint()
    assert first.fingerprint(True) != second.fingerprint(True)
    renamed = number_rows(records([[10, 20], [20]]))
    assert first.fingerprint(True) == renamed.fingerprint(True)


def test_identities_of_two_data_sets_differ(monkeypatch: pytest.MonkeyPatch):
    sets = {"a": records([[0, 3], [-1]]), "b": records([[0, -1, 3]])}
    monkeypatch.setattr(training_set, "registered_records", lambda name: copy.deepcopy(sets[name]))
    monkeypatch.setattr(training_set, "attach_masks", lambda *_: None)
    loaded = load_training_set(["a", "b"])
    assert loaded.person_ids.tolist() == [0, 3, -1, 4, -1, 7]
    assert loaded.identities.tolist() == [0, 1, -1, 2, -1, 3]


def test_tracklets_of_two_data_sets_differ(monkeypatch: pytest.MonkeyPatch):
    sets = {"a": records([[0, 3], [-1]]), "b": records([[0, -1, 3]])}
    for name, tracklets in (("a", [5, None, 0]), ("b", [0, 2, None])):
        annotations = [annotation for record in sets[name] for annotation in record["annotations"]]
        for annotation, tracklet in zip(annotations, tracklets, strict=True):
            annotation |= {} if tracklet is None else {"tracklet_id": tracklet}
    monkeypatch.setattr(training_set, "registered_records", lambda name: copy.deepcopy(sets[name]))
    monkeypatch.setattr(training_set, "attach_masks", lambda *_: None)
    assert load_training_set(["a", "b"]).tracklet_index.tolist() == [5, -1, 0, 6, 8, -1]
    assert load_training_set(["a"]).tracklet_index.tolist() == [5, -1, 0]


def test_an_unknown_name_lists_person_search_sets_alone():
    with pytest.raises(ConfigError, match="dataset prw_trian is not registered; registered are .*prw_train") as caught:
        registered_records("prw_trian")
    assert "coco" not in str(caught.value)


def test_a_set_of_which_no_image_is_there_is_refused_and_one_with_some_is_not(tmp_path):
    both = records([[1], [2]])
    for record in both:
        record["file_name"] = str(tmp_path / record["file_name"])
    with pytest.raises(DatasetError, match="none of the 2 training images exists, the first is .*frame0.jpg"):
        number_rows(both).check_images()
    (tmp_path / "frame1.jpg").touch()
    number_rows(both).check_images()
    both[0]["file_name"] = f"{tmp_path / 'gone.avi'}#frame=0"
    both[1]["file_name"] = f"{tmp_path / 'clip.avi'}#frame=1"
    with pytest.raises(DatasetError, match="none of the 2"):
        number_rows(both).check_images()
    (tmp_path / "clip.avi").touch()
    number_rows(both).check_images()
