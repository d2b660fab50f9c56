"""Statistics, contact sheets and the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from person_search.data.images import read_image
from person_search.synthetic import PRESETS, generate, load_synthetic, load_synthetic_protocol
from person_search.synthetic.preview import contact_sheet, summarize

from ..programs import load_program

SMALL = replace(PRESETS["tiny"], train_frames=6, test_frames=4, train_identities=4, test_identities=3, max_persons=3)
OPTIONS = [
    *("--preset", "tiny", "--train-frames", "6", "--test-frames", "4", "--train-identities", "4"),
    *("--test-identities", "3", "--max-persons", "3"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(SMALL, tmp_path_factory.mktemp("root"), progress=False)


@pytest.fixture(scope="module")
def command(repository: Path) -> ModuleType:
    return load_program(repository / "datasets" / "prepare_synthetic.py")


def test_statistics_agree_with_the_records(folder: Path) -> None:
    summary = summarize(folder)
    for split in ("train", "test"):
        records = load_synthetic(folder, split)
        persons = [annotation for record in records for annotation in record["annotations"]]
        heights = [person["bbox"][3] - person["bbox"][1] for person in persons]
        found = summary[split]
        assert (found["frames"], found["persons"]) == (len(records), len(persons))
        assert found["unlabelled"] == sum(person["person_id"] == -1 for person in persons)
        assert found["identities"] == SMALL.train_identities if split == "train" else SMALL.test_identities
        assert (found["min_height"], found["max_height"]) == (min(heights), max(heights))
        assert found["cameras"] == 2 and 0 <= found["occluded"] <= 1
    assert summary["test"]["queries"] == len(load_synthetic_protocol(folder).queries)


def test_the_contact_sheet_shows_frames_boxes_and_identities(folder: Path) -> None:
    sheet = contact_sheet(folder, frames=3, identities=2)
    height, width = SMALL.image_height, SMALL.image_width
    assert sheet.dtype == np.uint8
    assert sheet.shape == (2 * height + 2 * 112, 2 * width, 3)
    first = load_synthetic(folder, "train")[0]
    drawn = sheet[:height, :width]
    assert (drawn == read_image(first["file_name"])).mean() > 0.8
    x0, y0, x1, y1 = (round(v) for v in first["annotations"][0]["bbox"])
    assert np.ptp(drawn[y1 - 1, x0 + 1 : x1 - 1].astype(int), axis=0).max() == 0, "the box's lower edge is one color"
    second = load_synthetic(folder, "train")[3]  # of the other camera
    assert second["camera_id"] != first["camera_id"]
    assert (sheet[:height, width : 2 * width] == read_image(second["file_name"])).mean() > 0.8
    assert not sheet[height : 2 * height, width:].any(), "there is no fourth frame"
    assert sheet[2 * height :].std() > 20


def test_the_command_generates_and_reports(
    command: ModuleType, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.png"
    assert command.main([*OPTIONS, "--out", str(tmp_path), "--preview", str(sheet)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert Path(lines[-1]) == tmp_path / SMALL.folder_name
    assert json.loads(lines[0].removeprefix("train: ")) == summarize(folder)["train"]
    assert (cv2.imread(str(sheet))[..., ::-1] == contact_sheet(folder)).all()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--noise", "99"], "SyntheticConfig.noise = 99.0"),
        (["--workers", "0"], "workers = 0"),
        (["--preview", "missing/sheet.png"], "--preview missing/sheet.png cannot be written"),
    ],
)
def test_the_command_names_what_is_wrong_in_one_line(
    command: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], problem: str
) -> None:
    assert command.main([*OPTIONS, "--out", str(tmp_path), *options]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and problem in last


def test_the_command_puts_datasets_where_detectron2_looks(
    command: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "root"))
    assert command.main(OPTIONS) == 0
    assert (tmp_path / "root" / SMALL.folder_name / "test.json").is_file()
    assert capsys.readouterr().out
