"""Features on disk: what is stored comes back, what is damaged or outdated does not."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from person_search.evaluation import features as feature_store
from person_search.evaluation.features import FeatureStore
from person_search.evaluation.protocols import ImageOutput

NETWORK = "ab" * 32


def output(seed: int, detections: int, given: int) -> ImageOutput:
    rng = np.random.default_rng(seed)
    return ImageOutput(
        box=rng.random((detections, 4), np.float32),
        score=rng.random(detections, np.float32),
        feature=rng.random((detections, 6), np.float32),
        given_feature=rng.random((given, 6), np.float32),
    )


# Also frames without detections, without given boxes and without either.
OUTPUTS = {f"frame/{i}.jpg": output(i, detections=i % 3, given=i % 4) for i in range(13)}
KEYS = {name: f"key of {name}" for name in OUTPUTS}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeatureStore:
    monkeypatch.setattr(feature_store, "FRAMES_A_FILE", 4)
    return FeatureStore.of(tmp_path / "features", "set", NETWORK)


def fill(store: FeatureStore, outputs=OUTPUTS, keys=KEYS) -> list[Path]:
    with store.writer(keys) as writer:
        for name, value in outputs.items():
            writer.add({name: value})
    return sorted(store.folder.iterdir())


def assert_equal(found: dict[str, ImageOutput], expected: dict[str, ImageOutput]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        for part, array in vars(value).items():
            stored = getattr(found[name], part)
            assert stored.dtype == np.float32 and np.array_equal(stored, array), (name, part)


def test_what_is_stored_comes_back(store):
    assert store.load(KEYS) == {}
    files = fill(store)
    assert store.folder.name == "set-abababababababab" and len(files) == 4  # 4 + 4 + 4 + 1 frames
    assert_equal(store.load(KEYS), OUTPUTS)
    some = {name: KEYS[name] for name in list(KEYS)[5:7]}
    assert_equal(store.load(some), {name: OUTPUTS[name] for name in some})


def test_an_interruption_keeps_what_came_before(store):
    frames = iter(OUTPUTS.items())
    with pytest.raises(KeyboardInterrupt), store.writer(KEYS) as writer:
        for _ in range(6):
            writer.add(dict([next(frames)]))
        assert len(list(store.folder.iterdir())) == 1  # what a kill would leave
        raise KeyboardInterrupt
    assert_equal(store.load(KEYS), dict(list(OUTPUTS.items())[:6]))


def test_a_file_is_written_at_the_latest_after_some_time(store, monkeypatch):
    monkeypatch.setattr(feature_store, "SECONDS_A_FILE", 0.0)
    with store.writer(KEYS) as writer:
        for number, (name, value) in enumerate(OUTPUTS.items(), 1):
            writer.add({name: value})
            assert len(list(store.folder.iterdir())) == number


def test_processes_write_beside_each_other(store):
    names = list(OUTPUTS)
    with store.writer(KEYS) as first, store.writer(KEYS) as second:
        for i, name in enumerate(names):
            (first, second)[i % 2].add({name: OUTPUTS[name]})
        second.add({names[0]: OUTPUTS[names[0]]})  # stored twice does no harm
    assert_equal(store.load(KEYS), OUTPUTS)


@pytest.mark.parametrize(
    "damage", ["cut", "flipped", "empty", "no archive", "other network", "other arrays", "fewer arrays", "fewer frames"]
)
def test_damaged_files_are_named_deleted_and_missing(store, damage, caplog):
    file = fill(store)[1]
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        place = content.index(b"feature.npy") + 200
        content[place] ^= 0xFF
        file.write_bytes(content)
    elif damage == "empty":
        file.write_bytes(b"")
    elif damage == "no archive":
        file.write_bytes(b"\0" * 999)
    else:
        arrays = dict(np.load(file))
        if damage == "other network":
            arrays["network_key"] = np.array("cd" * 32)
        elif damage == "other arrays":
            arrays["score"] = arrays["score"][1:]
        elif damage == "fewer frames":
            arrays["frame_key"] = arrays["frame_key"][1:]
        else:
            del arrays["frame_key"]
        np.savez(file, **arrays)
    with caplog.at_level(logging.WARNING):
        found = store.load(KEYS)
    assert 9 <= len(found) < 13 and f"{file} is damaged" in caplog.text and not file.exists()
    assert_equal(found, {name: OUTPUTS[name] for name in found})
    fill(store, {name: value for name, value in OUTPUTS.items() if name not in found})
    assert_equal(store.load(KEYS), OUTPUTS)


def test_outdated_frames_are_counted_and_missing(store, caplog):
    files = fill(store)
    changed = list(OUTPUTS)[3:8]  # the last of a file, a whole file
    keys = {**KEYS, **dict.fromkeys(changed, "another key")}
    with caplog.at_level(logging.WARNING):
        found = store.load(keys)
    assert_equal(found, {name: value for name, value in OUTPUTS.items() if name not in changed})
    assert "1 of its 4 frames are outdated" in caplog.text and "4 of its 4 frames are outdated" in caplog.text
    assert len(list(store.folder.iterdir())) == len(files) - 1
    new = {name: replace(OUTPUTS[name], score=OUTPUTS[name].score + 1) for name in changed}
    fill(store, new, keys)
    assert_equal(store.load(keys), {**OUTPUTS, **new})


def test_a_folder_that_cannot_be_written_costs_a_message(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setattr(feature_store, "FRAMES_A_FILE", 4)
    store = FeatureStore.of(tmp_path / "file", "set", NETWORK)
    with caplog.at_level(logging.WARNING), store.writer(KEYS) as writer:
        for _ in range(2):
            writer.add(OUTPUTS)  # more than a file holds
    assert caplog.text.count("features are not stored") == 1 and "cannot write" in caplog.text
    assert store.load(KEYS) == {}
