"""tools/reproduce.py from its arguments to its files, once with a real training of one row."""

from __future__ import annotations

import importlib
import runpy
import signal
import sys
from pathlib import Path
from types import ModuleType

import pytest
from person_search.reproduction import rows
from person_search.synthetic import PRESETS, generate

from ..processes import start

SHORT = [
    *("MODEL.DEVICE", "cpu", "SOLVER.MAX_ITER", "2", "SOLVER.LOG_PERIOD", "1", "SSL.CLUSTERING.K1", "8"),
    *("SSL.MEMORY.CALIBRATION_FRAMES", "2", "INPUT.MIN_SIZE_TRAIN", "(144,)", "INPUT.MAX_SIZE_TRAIN", "256"),
    *("INPUT.MIN_SIZE_TEST", "144", "INPUT.MAX_SIZE_TEST", "256", "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "4"),
    *("SSL.EXEMPLAR.SCALES", "((24, 12), (48, 24))"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"),
]
FAST = ["MODEL.DEVICE", "cpu"]


@pytest.fixture
def tool(repository: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(repository / "tools")
    return importlib.import_module("reproduce")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny scenes."""
    folder = tmp_path_factory.mktemp("datasets")
    generate(PRESETS["tiny"], folder, progress=False)
    return folder


@pytest.fixture
def fake(tool, script, scenes, tmp_path, monkeypatch) -> Path:
    """The tool with the stand-in for the training; gives the output folder."""
    (tmp_path / "train_net.py").write_text(script.read_text())
    monkeypatch.setattr(tool, "REPOSITORY", tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))
    return tmp_path / "out"


def test_a_real_training_of_one_row(tool, scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))
    monkeypatch.setitem(rows.TABLES, "3", ("one row", rows.TABLES["3"][1][2:]))
    output = tmp_path / "out"
    call = ["--table", "3", "--dataset", "synthetic_tiny", "--seeds", "1", "--output", str(output), *SHORT]
    assert tool.main(call) == 0, capsys.readouterr().out
    seed = output / "ssl" / "seed_0"
    assert (seed / "inference" / "synthetic_tiny_test" / "problem.npz").is_file()
    text = (output / "table3.md").read_text()
    assert "| dynamic (SSL) (**below the color histogram**) |" in text
    assert "1 of 1" in text and "python tools/reproduce.py --table 3" in text
    written = (seed / "result.json").stat().st_mtime_ns
    assert tool.main(call) == 0
    assert "1 runs, 1 of them finished before" in capsys.readouterr().out
    assert (seed / "result.json").stat().st_mtime_ns == written
    assert tool.main(["--figure", "1", "--dataset", "synthetic_tiny", "--output", str(output)]) == 0
    assert (output / "figure1.png").is_file() and (output / "figure1.svg").is_file()


def test_a_table(tool, fake, capsys):
    call = ["--table", "1", "--dataset", "synthetic_tiny", "--seeds", "2", "--jobs", "2", "--output", str(fake), *FAST]
    assert tool.main(call) == 0
    text = (fake / "table1.md").read_text()
    # 10 x the margin 0.3 + 3 x seed^2, and 5 more for the row "ssl".
    assert "5 epochs, 2 frames an iteration, " in text
    assert "| baseline | 4.5 ± 2.1 | 50.0 ± 0.0 | 90.0 ± 0.0 | 95.0 ± 0.0 |  | 2 of 2 | 18.8 / 67.0 |" in text
    assert "| + SL + DML (SSL) | 9.5 ± 2.1 |" in text and "| +5.0 ± 0.0 | 2 of 2 |" in text
    assert (fake / "table1.csv").read_text().count("\n") == 5
    assert "8 of 8 runs done" in capsys.readouterr().out


def test_a_failed_row_leaves_a_table_of_the_others(tool, fake, capsys):
    fake.mkdir()
    (fake / "control_fixed_low").write_text("fail")
    assert tool.main(["--table", "3", "--dataset", "synthetic_tiny", "--seeds", "1", "--output", str(fake), *FAST]) == 1
    assert "1 of 3 runs failed: fixed_low, seed 0. The same command tries them again." in capsys.readouterr().out
    text = (fake / "table3.md").read_text()
    assert "| fixed, t = t_s | - |" in text and "| dynamic (SSL) | 8.0 |" in text


def test_a_sweep(tool, fake):
    call = ["--sweep", "m=0.1", "t_s=0.5", "--dataset", "synthetic_tiny", "--seeds", "2", "--output", str(fake)]
    assert tool.main([*call, *FAST]) == 0
    assert sorted(path.name for path in fake.iterdir() if path.is_file()) == [
        "sweep.csv",
        "sweep.md",
        "sweep.png",
        "sweep.svg",
    ]
    assert sorted(path.name for path in fake.iterdir() if path.is_dir()) == ["m_0.1", "ssl", "t_s_0.5"]
    text = (fake / "sweep.md").read_text()
    assert "| margin m = 0.1 | 2.5 ± 2.1 |" in text and "| -7.0 ± 0.0 |" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table", "1"], "name the data"),
        (["--table", "1", "--dataset", "mall"], "dataset mall_train is not registered"),
        (["--sweep", "mu", "--dataset", "synthetic_tiny"], "--sweep mu: expected one of m, gamma"),
        (["--table", "1", "--config-file", "nowhere.yaml"], "config file nowhere.yaml does not exist"),
        (["--table", "1", "--dataset", "synthetic_tiny", "SEED"], "expected KEY VALUE pairs"),
        (["--table", "1", "--dataset", "synthetic_tiny", "SEED", "1", "--jobs", "2"], "--jobs follows KEY VALUE"),
        (["--sweep", "scales=1.5", "--dataset", "synthetic_tiny"], "1.5 cannot be trained: scales takes whole numbers"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(tool, capsys, arguments, message):
    assert tool.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_an_output_that_cannot_be_written_is_told_before_anything_is_trained(tool, fake, capsys):
    fake.write_text("a file")
    call = ["--table", "3", "--dataset", "synthetic_tiny", "--output", str(fake / "x"), *FAST]
    assert tool.main(call) == 2
    said = capsys.readouterr()
    assert said.out == "" and f"--output {fake / 'x'} cannot be written" in said.err


def ask_for_help(repository: Path, before: signal.Handlers, answer: Path) -> None:
    """Starts the tool with a handler of hang-ups, and writes the one that it leaves."""
    signal.signal(signal.SIGHUP, before)
    sys.argv = ["tools/reproduce.py", "--help"]
    sys.path.insert(0, str(repository / "tools"))
    try:
        runpy.run_path(str(repository / "tools" / "reproduce.py"), run_name="__main__")
    finally:
        answer.write_text("ignored" if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else "handled")


@pytest.mark.parametrize(("before", "after"), [(signal.SIG_IGN, "ignored"), (signal.SIG_DFL, "handled")])
def test_a_hang_up_that_is_ignored_stays_ignored(repository, tmp_path, before, after):
    """As under nohup: closing the terminal must not end what was to outlive it."""
    start(ask_for_help, repository, before, tmp_path / "answer").join()
    assert (tmp_path / "answer").read_text() == after


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table", "1", "SSL.CLUSTERING.K1", "0"], "row baseline: SSL.CLUSTERING.K1"),
        (["--sweep", "m", "SSL.CLUSTERING.K1", "0"], "row m_0.1: SSL.CLUSTERING.K1"),
        (["--table", "1", "DATASETS.TEST", "('prw_test',)"], "PRW is missing"),
        (["--table", "1", "DATASETS.TRAIN", "('prw_train',)"], "PRW is missing"),
        (["--table", "1", "MODEL.WEIGHTS", "nowhere.pth"], "MODEL.WEIGHTS nowhere.pth does not exist"),
    ],
)
def test_what_no_row_can_be_trained_with_is_told_before_anything_is_trained(tool, fake, capsys, arguments, message):
    call = [*arguments[:2], "--dataset", "synthetic_tiny", "--output", str(fake), *arguments[-2:], *FAST]
    assert tool.main(call) == 2
    said = capsys.readouterr()
    assert not fake.exists() and said.out == ""
    (line,) = (line for line in said.err.splitlines() if line.startswith("error: "))
    assert message in line


@pytest.mark.parametrize("words", [["--seeds", "0"], ["--jobs", "-1"], ["--epochs", "x"]])
def test_numbers_that_are_none_are_refused(tool, capsys, words):
    with pytest.raises(SystemExit) as stopped:
        tool.main(["--table", "1", *words])
    assert stopped.value.code == 2
    assert "is not an integer of 1 or more" in capsys.readouterr().err
