"""Generation: the same bytes every time, all of it or nothing, and reuse of what is there."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from person_search.errors import ConfigError, DatasetError
from person_search.synthetic import PRESETS, SyntheticConfig, generate, read_config, storage
from person_search.synthetic.frame import render_frame
from person_search.synthetic.plan import plan_split
from pycocotools import mask as mask_util

TINY = PRESETS["tiny"]
# As small as a configuration can be, for tests that generate more than once.
SMALL = replace(TINY, train_frames=6, test_frames=4, train_identities=4, test_identities=3, max_persons=3)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(TINY, tmp_path_factory.mktemp("root"), progress=False)


def digests(folder: Path) -> dict[str, str]:
    """Relative path -> digest of the content of every file."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def visible_entries(root: Path) -> list[str]:
    return sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))


def test_the_same_configuration_gives_the_same_bytes(tiny: Path, tmp_path: Path) -> None:
    again = generate(TINY, tmp_path, progress=False)
    assert again.name == tiny.name == TINY.folder_name
    assert digests(again) == digests(tiny)
    assert len(digests(tiny)) == TINY.train_frames + TINY.test_frames + 3
    assert visible_entries(tmp_path) == [TINY.folder_name]


def test_workers_do_not_change_a_byte(tmp_path: Path) -> None:
    alone = generate(SMALL, tmp_path / "one", progress=False, workers=1)
    together = generate(SMALL, tmp_path / "two", progress=False, workers=2)
    assert digests(alone) == digests(together)


def test_another_seed_gives_other_pictures(tiny: Path, tmp_path: Path) -> None:
    other = generate(replace(SMALL, seed=1), tmp_path, progress=False)
    assert not set(digests(other).values()) & set(digests(tiny).values())


def test_files_hold_what_was_rendered(tiny: Path) -> None:
    for split in ("train", "test"):
        content = json.loads((tiny / f"{split}.json").read_text())
        for plan, image in zip(plan_split(TINY, split), content["images"], strict=True):
            assert image["file_name"] == f"c{image['camera_id']}_{plan.frame:06d}.png"
            pixels, persons = render_frame(TINY, split, plan)
            assert (cv2.imread(str(tiny / split / image["file_name"]))[..., ::-1] == pixels).all()
            stored = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            assert [a["person_id"] for a in stored] == [person.person_id for person in persons]
            for annotation, person in zip(stored, persons, strict=True):
                x, y, w, h = annotation["bbox"]
                assert (x, y, x + w, y + h) == person.bbox
                assert annotation["area"] == person.mask.sum()
                assert isinstance(annotation["segmentation"]["counts"], str)
                assert (mask_util.decode(annotation["segmentation"]).astype(bool) == person.mask).all()


def test_splits_cover_their_identities_and_passers_by(tiny: Path) -> None:
    seen = {}
    for split in ("train", "test"):
        content = json.loads((tiny / f"{split}.json").read_text())
        seen[split] = {annotation["person_id"] for annotation in content["annotations"]}
        assert -1 in seen[split]
        assert seen[split] - {-1} == set(TINY.identities(split))
    assert seen["train"] & seen["test"] == {-1}


def test_queries_show_enough_and_have_a_match_in_another_frame(tiny: Path) -> None:
    content = json.loads((tiny / "test.json").read_text())
    by_id = {annotation["id"]: annotation for annotation in content["annotations"]}
    camera_of = {image["id"]: image["camera_id"] for image in content["images"]}
    queries = [by_id[number] for number in content["queries"]]
    assert len(queries) == len(set(content["queries"]))
    of_person = Counter(query["person_id"] for query in queries)
    assert set(of_person) == set(TINY.identities("test"))
    assert max(of_person.values()) == TINY.queries_per_identity
    for query in queries:
        assert query["visibility"] >= 0.5
        assert any(
            other["person_id"] == query["person_id"] and other["image_id"] != query["image_id"]
            for other in content["annotations"]
        )
    for person_id in of_person:
        cameras = {camera_of[query["image_id"]] for query in queries if query["person_id"] == person_id}
        candidates = {
            camera_of[a["image_id"]]
            for a in content["annotations"]
            if a["person_id"] == person_id and a["visibility"] >= 0.5
        }
        assert len(cameras) == min(len(candidates), of_person[person_id]), "a camera is asked twice, another not once"


def test_jpeg_files_are_close_to_the_rendered_pixels(tmp_path: Path) -> None:
    config = replace(SMALL, image_format="jpg", noise=0.0)
    folder = generate(config, tmp_path, progress=False)
    plan = plan_split(config, "train")[0]
    file = folder / "train" / f"c{plan.camera_id}_000000.jpg"
    assert file.read_bytes()[:2] == b"\xff\xd8"
    stored = cv2.imread(str(file))[..., ::-1].astype(float)
    assert np.abs(stored - render_frame(config, "train", plan)[0]).mean() < 4


def _refuse(*_: Any) -> None:
    raise AssertionError("a finished dataset is rendered again")


def test_a_finished_dataset_is_used_again(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "render_frame", _refuse)
    assert generate(TINY, tiny.parent, progress=False) == tiny
    assert read_config(tiny) == TINY


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("out of memory")])
def test_an_interrupted_generation_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    rendered = 0

    def interrupted(*arguments: Any) -> Any:
        nonlocal rendered
        rendered += 1
        if rendered > 7:  # in the second split
            raise error
        return render_frame(*arguments)

    monkeypatch.setattr(storage, "render_frame", interrupted)
    with pytest.raises(type(error)):
        generate(SMALL, tmp_path, progress=False)
    assert rendered == 8 and visible_entries(tmp_path) == []


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path) -> None:
    left = tmp_path / (SMALL.folder_name + ".partial") / "train"
    left.mkdir(parents=True)
    (left / "c9_000099.png").write_bytes(b"old")
    folder = generate(SMALL, tmp_path, progress=False)
    assert visible_entries(tmp_path) == [SMALL.folder_name]
    assert not (folder / "train" / "c9_000099.png").exists()


def test_callers_at_the_same_time_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = []

    def counted(config: SyntheticConfig, split: str, plan: Any) -> Any:
        rendered.append((split, plan.frame))
        return render_frame(config, split, plan)

    monkeypatch.setattr(storage, "render_frame", counted)
    folders: list[Path] = []
    threads = [
        threading.Thread(target=lambda: folders.append(generate(SMALL, tmp_path, progress=False))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders == [tmp_path / SMALL.folder_name] * 3
    assert len(rendered) == len(set(rendered)) == SMALL.train_frames + SMALL.test_frames


def test_a_folder_of_another_dataset_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / SMALL.folder_name
    folder.mkdir()
    (folder / "precious.txt").write_text("mine")
    with pytest.raises(DatasetError, match=r"config\.json.*expected a synthetic dataset"):
        generate(SMALL, tmp_path, progress=False)
    stored = {"generator_version": storage.GENERATOR_VERSION, "config": {"name": "other"}}
    (folder / "config.json").write_text(json.dumps(stored))
    with pytest.raises(DatasetError, match="describes another dataset"):
        generate(SMALL, tmp_path, progress=False)
    assert (folder / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"generator_version": 0, "config": {}}',
        '{"generator_version": 1, "config": {"speed": 1}}',
        '{"generator_version": 1, "config": {"noise": -1}}',
    ],
)
def test_a_damaged_configuration_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(DatasetError, match=r"config\.json: .*remove the folder"):
        read_config(tmp_path)


def test_a_root_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DatasetError, match=r"file/synthetic-tiny.* cannot be written"):
        generate(SMALL, tmp_path / "file", progress=False)


def test_workers_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="workers = 0"):
        generate(SMALL, tmp_path, workers=0)


def test_progress_is_shown_unless_unwanted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate(SMALL, tmp_path / "silent", progress=False)
    assert capsys.readouterr().err == ""
    generate(SMALL, tmp_path / "shown", progress=True)
    assert "10/10" in capsys.readouterr().err
