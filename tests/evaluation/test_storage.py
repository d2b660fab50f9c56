"""Problems survive the way to a file and back; damaged files say what is wrong; no file is left half written."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import numpy as np
import pytest
from person_search.data.records import Gallery
from person_search.errors import DatasetError
from person_search.evaluation.problem import own_frame_galleries, with_galleries
from person_search.evaluation.protocols import listed_galleries
from person_search.evaluation.storage import load_problem, save_problem, write_json


def assert_equal(a, b) -> None:
    for name in (field.name for field in fields(a)):
        ours, theirs = getattr(a, name), getattr(b, name)
        if name == "galleries":
            assert list(ours) == list(theirs)
            for key in ours:
                assert_equal(ours[key], theirs[key])
        else:
            np.testing.assert_array_equal(ours, theirs, err_msg=name)


def test_round_trip(golden_problem, tmp_path):
    rows = [Gallery((golden_problem.frame_name[1],), {}) for _ in golden_problem.query_frame]
    frame_of = {name: frame for frame, name in enumerate(golden_problem.frame_name)}
    listed = listed_galleries(rows, frame_of, "test")
    problem = with_galleries(golden_problem, {**golden_problem.galleries, "100": listed}, "100")
    save_problem(problem, tmp_path / "new" / "problem.npz")
    assert_equal(load_problem(tmp_path / "new" / "problem.npz"), problem)
    without_cameras = replace(problem, frame_camera=None, galleries={}, main_gallery="")
    save_problem(without_cameras, tmp_path / "problem.npz")
    assert_equal(load_problem(tmp_path / "problem.npz"), without_cameras)
    assert [path.name for path in tmp_path.iterdir()].count("problem.npz") == 1
    assert not list(tmp_path.glob("**/*.tmp"))


def test_golden_layout_gets_its_galleries(golden_problem):
    assert list(golden_problem.galleries) == ["all_cameras", "cross_camera"]
    assert_equal(golden_problem.galleries["cross_camera"], own_frame_galleries(golden_problem, True))


@pytest.fixture()
def arrays(shared) -> dict[str, np.ndarray]:
    with np.load(shared / "golden" / "search_prw.npz") as file:
        return dict(file)


def written(folder, arrays):
    np.savez(folder / "problem.npz", **arrays)
    return folder / "problem.npz"


@pytest.mark.parametrize("change, message", [
    ({"det_box": None}, "array det_box is missing"),
    ({"det_box": np.zeros((3, 4))}, r"det_box has shape \(3, 4\), expected \(3692, 4\)"),
    ({"query_feature": np.zeros((150, 8), np.float32)}, r"query_feature has shape \(150, 8\), expected \(150, 256\)"),
    ({"det_feature": np.full((3692, 256), np.nan, np.float32)}, "det_feature has numbers that are not finite"),
    ({"query_frame": np.full(150, 700)}, "query_frame runs from 700 to 700, expected 0 to 699"),
    ({"frame_camera": np.zeros(3)}, "frame_camera has shape"),
    ({"galleries": np.array(["50"])}, "array gallery.50.target_offset is missing"),
])  # fmt: skip
def test_arrays_that_do_not_fit_are_named(arrays, tmp_path, change, message):
    arrays = {key: array for key, array in (arrays | change).items() if array is not None}
    with pytest.raises(DatasetError, match=message) as error:
        load_problem(written(tmp_path, arrays))
    assert "problem.npz" in str(error.value)


def test_files_that_are_no_problem_are_named(tmp_path):
    with pytest.raises(DatasetError, match="absent.npz does not exist"):
        load_problem(tmp_path / "absent.npz")
    for name, content in {"text.npz": b"no arrays", "cut.npz": b"PK\x03\x04 cut short", "empty.npz": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DatasetError, match=f"{name} is not a search problem"):
            load_problem(tmp_path / name)
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(DatasetError, match="is not a search problem"):
        load_problem(tmp_path / "single.npy")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "figures.json"
    write_json(path, {"mAP": 1.0})
    with pytest.raises(ValueError):
        write_json(path, {"mAP": float("nan")})
    assert json.loads(path.read_text()) == {"mAP": 1.0}
    assert [file.name for file in tmp_path.iterdir()] == ["figures.json"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="cannot write .*file/results.json"):
        write_json(tmp_path / "file" / "results.json", {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"det_score": lambda a: a.astype(str)}, "det_score must have numbers, not <U"),
        ({"det_frame": lambda a: a + 0.5}, "det_frame must have integers, not float64"),
        ({"gt_pid": lambda a: a + 0.5}, "gt_person_id must have integers, not float64"),
        ({"frame_name": lambda a: np.where(np.arange(len(a)) == 3, a[5], a)}, "frame_name has '.*' more than once"),
    ],
)
def test_arrays_that_would_give_wrong_figures_are_refused(shared, tmp_path, change, message):
    arrays = dict(np.load(shared / "golden" / "search_prw.npz"))
    for name, make in change.items():
        arrays[name] = make(arrays[name])
    np.savez(tmp_path / "p.npz", **arrays)
    with pytest.raises(DatasetError, match=f"p.npz: search problem: {message}"):
        load_problem(tmp_path / "p.npz")


@pytest.mark.parametrize("content", [b"no archive", b"", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_archive_is_told(tmp_path, content):
    (tmp_path / "p.npz").write_bytes(content)
    with pytest.raises(DatasetError, match="p.npz is not a search problem: expected an undamaged npz archive"):
        load_problem(tmp_path / "p.npz")
