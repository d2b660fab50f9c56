"""The pseudo-label benchmark as a program: its JSON line, its labels file, and one-line errors."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

# Runs the program once for every list of arguments, in one process: most of a start is loading PyTorch.
RUNNER = """
import json, os, runpy, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
main = runpy.run_path(sys.argv[1])["main"]
for arguments in json.loads(sys.argv[2]):
    sys.argv = ["pseudo_labels.py", *arguments]
    try:
        main()
    except SystemExit as stop:
        print("exit", stop.code if isinstance(stop.code, int) else repr(str(stop.code)))
"""


@pytest.fixture(scope="module")
def program(repository: Path) -> Path:
    return repository / "benchmarks" / "pseudo_labels.py"


def run(program: Path, *runs: list[str], folder: Path) -> list[str]:
    """Lines of stdout of several runs in a folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [sys.executable, "-c", RUNNER, str(program), json.dumps(runs)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_labels_and_figures(program: Path, shared: Path, tmp_path: Path) -> None:
    golden_file = shared / "golden" / "pseudo_labels.npz"
    golden = np.load(golden_file)
    np.savez(tmp_path / "named.npz", feature=golden["feature"], image=np.char.add("s", golden["image"].astype(str)))
    two_epochs, compared, simulated = run(
        program,
        [str(golden_file), "--out", "labels.npz"],
        ["named.npz", "--compare", "labels.npz", "--device", "cpu"],
        ["--simulate", "500", "--clusterer", "hdbscan", "--out", "simulated.npz"],
        folder=tmp_path,
    )
    figures = json.loads(two_epochs)
    labels = np.load(tmp_path / "labels.npz")
    assert adjusted_rand_score(labels["labels1"], golden["labels1"]) == 1.0
    assert adjusted_rand_score(labels["labels2"], golden["labels2"]) == 1.0
    assert labels["threshold"] == golden["threshold"] == figures["threshold"]
    sizes = np.unique(golden["labels1"], return_counts=True)[1]
    assert (figures["clusters"], figures["singletons"]) == ((sizes > 1).sum(), (sizes == 1).sum())
    assert figures["n"] == 1200 and figures["threads"] == 2 and figures["device"] == "cpu"
    stages = sum(figures[name] for name in ("search", "distance", "clustering", "criterion"))
    assert 0 < stages <= figures["seconds"] + 0.01 and figures["epoch2"]["seconds"] > 0
    assert 100 < figures["peak_mb"] < 5000
    assert json.loads(compared)["adjusted_rand_index"] == 1.0
    assert json.loads(simulated)["n"] == 500 == len(np.load(tmp_path / "simulated.npz")["labels1"])


def test_errors_are_one_line(program: Path, tmp_path: Path) -> None:
    feature, image = np.eye(4, dtype=np.float32), np.arange(4)
    problems = {
        "good": {"feature": feature, "image": image},
        "no_image": {"feature": feature},
        "flat": {"feature": image, "image": image},
        "short": {"feature": feature, "image": image[:3]},
        "second": {"feature": feature, "image": image, "feature2": feature[:3]},
        "words": {"feature": np.full((4, 4), "a"), "image": image},
        "nan": {"feature": np.full((4, 4), np.nan, dtype=np.float32), "image": image},
    }
    for name, arrays in problems.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    (tmp_path / "damaged.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:200])
    np.savez(tmp_path / "objects.npz", feature=np.array([{}, {}]), image=image)
    expected = {
        ("missing.npz",): "missing.npz is no file",
        ("damaged.npz",): "damaged.npz cannot be read",
        ("objects.npz",): "objects.npz cannot be read",
        ("no_image.npz",): "no array 'image'",
        ("flat.npz",): "feature in flat.npz has shape (4,), expected (N, d)",
        ("short.npz",): "image in short.npz has shape (3,), expected (4,)",
        ("second.npz",): "feature2 in second.npz has shape (3, 4), expected (4, 4)",
        ("words.npz",): "expected real numbers",
        ("nan.npz",): "4 of 4 feature rows have NaN or infinite values",
        ("good.npz", "--out", "nowhere/labels.npz"): "the folder nowhere does not exist",
        ("good.npz", "--compare", "no_image.npz"): "no_image.npz cannot be read as a labels file",
        ("good.npz", "--device", "cuda"): "no usable GPU",
        (): "exit 2",
        ("good.npz", "--simulate", "5"): "exit 2",
        ("--simulate", "0"): "exit 2",
    }
    lines = run(program, *(list(arguments) for arguments in expected), folder=tmp_path)
    assert len(lines) == len(expected)
    for line, message in zip(lines, expected.values(), strict=True):
        assert line.startswith("exit") and message in line
        if message != "exit 2":
            assert line.startswith("exit 'error: ") or line.startswith('exit "error: ')
    assert not list(tmp_path.glob("*.part"))


def test_growth_is_read_off_the_figures_and_drawn(repository: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    growth = runpy.run_path(str(repository / "benchmarks" / "pseudo_label_growth.py"))
    stages = {"search": 1.0, "distance": 2.0, "clustering": 0.1, "criterion": 0.1}
    rows = [
        {"n": n, "seconds": (n / 1000) ** 2, "cpu_seconds": n / 1000, "peak_mb": 500, **stages}
        for n in (1000, 4000, 2000)
    ]
    (tmp_path / "figures.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("growth.svg", "again.svg"):
        monkeypatch.setattr("sys.argv", ["growth", str(tmp_path / "figures.jsonl"), "--plot", str(tmp_path / name)])
        growth["main"]()
    line = json.loads(capsys.readouterr().out.splitlines()[0])
    assert line["n"] == [1000, 2000, 4000] and line["seconds_exponent"] == [2, 2]
    assert line["cpu_seconds_exponent"] == [1, 1] and line["peak_mb_exponent"] == [0, 0]
    svg = (tmp_path / "growth.svg").read_bytes()
    assert svg == (tmp_path / "again.svg").read_bytes() and b"peak memory" in svg
    (tmp_path / "figures.jsonl").write_text("no figures")
    with pytest.raises(SystemExit, match="figures.jsonl does not hold the JSON lines"):
        growth["main"]()
