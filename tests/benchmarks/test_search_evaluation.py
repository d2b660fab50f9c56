"""The benchmark program: golden figures on its line, little memory, errors in one line."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from person_search.evaluation.storage import load_problem
from scipy.io import savemat

Program = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def path(repository: Path) -> Path:
    return repository / "benchmarks" / "search_evaluation.py"


@pytest.fixture
def benchmark(path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Program:
    """Runs the program and returns its line."""
    monkeypatch.syspath_prepend(str(path.parent))
    main = runpy.run_path(str(path))["main"]

    def run(*arguments: object) -> dict[str, Any]:
        main([str(argument) for argument in arguments])
        (line,) = capsys.readouterr().out.splitlines()
        return json.loads(line)

    return run


@pytest.mark.parametrize("file, case, flags", [
    ("search_prw.npz", "all_cameras", []),
    ("search_prw.npz", "cross_camera", ["--cross-camera"]),
    ("search_prw.npz", "all_cameras_cbgm_k1_30_k2_4", ["--cbgm", 30, 4]),
    ("search_prw.npz", "detection", ["--detection"]),
    ("search_cuhk_g100.npz", "gallery_100", ["--protocol", "data/cuhk_sysu/TestG100.mat"]),
])  # fmt: skip
def test_golden_figures(benchmark, shared, file, case, flags):
    flags = [shared / flag if str(flag).startswith("data/") else flag for flag in flags]
    line = benchmark(shared / "golden" / file, *flags)
    expected = json.loads((shared / "golden" / "expected.json").read_text())[file][case]
    assert {name: line[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert line["seconds"] > 0


def test_a_simulated_problem_of_prw_s_size_takes_300_mb(path, tmp_path):
    # In a process of its own, whose peak is this problem's.
    command = [sys.executable, path, "--simulate", "prw", "--save", tmp_path / "prw.npz"]
    line = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (line["frames"], line["detections"], line["queries"], line["simulated"]) == (6112, 32000, 2057, True)
    assert line["peak_mb"] < 300
    assert len(load_problem(tmp_path / "prw.npz").query_frame) == 2057


@pytest.mark.parametrize("arguments, message", [
    ([], "give either PROBLEM.npz or --simulate"),
    (["absent.npz"], "absent.npz does not exist"),
    (["{golden}/search_cuhk_g100.npz"], "no gallery, nor annotated boxes to make one of: give its --protocol"),
    (["{golden}/search_cuhk_g100.npz", "--protocol", "{data}/TestG100.mat", "--detection"], "leave out --detection"),
    (["{golden}/search_prw.npz", "--shortlist", 3], "--shortlist belongs to --reranking"),
    (["{golden}/search_prw.npz", "--shortlist", 0, "--reranking"], "shortlist is 0"),
    (["--simulate", "prw", "--seed", -1], "--seed -1: expected 0 or more"),
    (["{golden}/search_prw.npz", "--cbgm", 0, 4], "K1 is 0"),
    (["{golden}/search_cuhk_g100.npz", "--protocol", "absent/TestG50.mat"], "absent/TestG50.mat: the file is missing"),
])  # fmt: skip
def test_errors_are_one_line(benchmark, capsys, shared, arguments, message):
    folders = {"golden": shared / "golden", "data": shared / "data" / "cuhk_sysu"}
    with pytest.raises(SystemExit) as stopped:
        benchmark(*(str(argument).format(**folders) for argument in arguments))
    assert capsys.readouterr().out == ""
    (line,) = str(stopped.value.code).splitlines()
    assert line.startswith("error: ")
    assert message in line


def structs(**columns) -> np.ndarray:
    """A MATLAB struct array with the given columns."""
    rows = list(zip(*columns.values(), strict=True))
    array = np.empty((1, len(rows)), [(name, object) for name in columns])
    for place, row in enumerate(rows):
        array[0, place] = row
    return array


def write_protocol(path, queries) -> None:
    box, absent = np.array([[1, 2, 30, 60]], np.uint16), np.zeros((1, 0))
    galleries = [structs(imname=["b.jpg", "c.jpg"], idlocate=[box, absent]) for _ in queries]
    rows = [structs(imname=[name], idlocate=[box]) for name in queries]
    savemat(path, {path.stem: structs(Query=rows, Gallery=galleries)})


def test_protocol_files_name_the_galleries(benchmark, tmp_path):
    feature = np.eye(2, dtype=np.float32)
    np.savez(
        tmp_path / "problem.npz", image_name=["a.jpg", "b.jpg", "c.jpg"], query_name=["a.jpg"],
        query_feature=feature[:1], query_box=np.ones((1, 4)), det_image=[1, 2],
        det_box=np.float32([[1, 2, 31, 62]] * 2), det_score=np.float32([0.9, 0.9]), det_feature=feature,
    )  # fmt: skip
    for size in (2, 50):
        write_protocol(tmp_path / f"TestG{size}.mat", ["a.jpg"])
    write_protocol(tmp_path / "TestG3.mat", ["c.jpg"])
    line = benchmark(tmp_path / "problem.npz", "--protocol", tmp_path / "TestG2.mat", tmp_path / "TestG50.mat")
    assert (line["gallery"], line["mAP"], list(line["galleries"])) == ("2", 1.0, ["2", "50"])
    with pytest.raises(SystemExit, match="TestG3.mat: query 0 is of frame c.jpg, in the problem it is of a.jpg"):
        benchmark(tmp_path / "problem.npz", "--protocol", tmp_path / "TestG3.mat")
