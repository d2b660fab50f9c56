"""The runner, with a stand-in for the training: what it starts, skips, continues, repeats, and what it says of
failures."""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from person_search.reproduction.configs import base_config
from person_search.reproduction.rows import TABLES
from person_search.reproduction.runner import Lane, Runner, share
from person_search.reproduction.runs import Run, plan_runs, read_result

ROWS = TABLES["1"][1][:2]
LANE = Lane((0,))


def starts(run: Run) -> list[str]:
    """What the stand-in noted at each of its starts: new or resumed, OMP_NUM_THREADS, CUDA_VISIBLE_DEVICES."""
    file = run.folder / "starts.txt"
    return file.read_text().splitlines() if file.exists() else []


def control(tmp_path: Path, row: str, mode: str) -> None:
    (tmp_path / "out" / f"control_{row}").write_text(mode)


@pytest.fixture
def runs(base, configs, tmp_path) -> list[Run]:
    """Two rows with one seed."""
    (tmp_path / "out").mkdir()
    return plan_runs(ROWS, 1, base, tmp_path / "out", configs)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def runner(script, said) -> Runner:
    return Runner(script, [LANE], said.append)


def wait_for(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_rows_are_trained_once(runner, runs, said):
    assert runner.run(runs) == []
    assert [starts(run) for run in runs] == [["new 1 -"]] * 2
    commands = [line for line in said if "$ " in line]
    assert commands[0].startswith("baseline, seed 0: $ OMP_NUM_THREADS=1 ")
    assert commands[0].endswith(f"--config-file {runs[0].folder}/effective.yaml --num-gpus 1")
    assert "baseline, seed 0: mAP 3.0 %, top-1 50.0 %" in "\n".join(said)
    result = json.loads((runs[0].folder / "result.json").read_text())
    assert (result["row"], result["seed"], result["figures"]["search"]["mAP"]) == ("baseline", 0, 3.0)
    said.clear()
    assert runner.run(runs) == []
    assert [len(starts(run)) for run in runs] == [1, 1]
    assert said == ["2 runs, 2 of them finished before"]


def test_the_plan_goes_seed_by_seed(base, configs, tmp_path):
    plan = plan_runs((*ROWS, ROWS[0]), 2, base, tmp_path, configs)
    assert [(run.row.name, run.seed, run.cfg.SEED) for run in plan] == [
        ("baseline", 0, 0), ("dml", 0, 0), ("baseline", 1, 1), ("dml", 1, 1),
    ]  # fmt: skip
    assert plan[1].folder == tmp_path / "dml" / "seed_0" == Path(plan[1].cfg.OUTPUT_DIR)


def test_a_changed_config_is_trained_anew_and_without_the_old_files(runner, runs, script, configs, tmp_path):
    runner.run(runs)
    stale = runs[0].folder / "model_0000007.pth"
    stale.write_text("weights of the other config")
    changed = base_config(configs, "synthetic_tiny", options=["MODEL.DEVICE", "cpu", "SSL.SCALE_LOSS.MARGIN", "0.4"])
    again = plan_runs(ROWS, 1, changed, tmp_path / "out", configs)
    assert read_result(again[0]) is None
    runner.run(again)
    assert starts(again[0]) == ["new 1 -"] * 2  # not resumed, though a checkpoint was there
    assert not stale.exists()
    assert len((runs[0].folder / "metrics.json").read_text().splitlines()) == 1
    assert read_result(again[0])["figures"]["search"]["mAP"] == 4.0
    assert read_result(runs[0]) is None


@pytest.mark.parametrize("content", ["", "[]", "{", '{"config": 3}'])
def test_a_damaged_result_does_not_count(runner, runs, content):
    runner.run(runs)
    (runs[1].folder / "result.json").write_text(content)
    assert read_result(runs[1]) is None
    runner.run(runs)
    assert starts(runs[1]) == ["new 1 -", "resumed 1 -"]
    assert read_result(runs[1]) is not None


def test_a_failed_row_is_reported_and_the_others_go_on(runner, runs, said, tmp_path):
    control(tmp_path, "baseline", "fail")
    assert runner.run(runs) == [runs[0]]
    (line,) = (line for line in said if "FAILED baseline" in line)
    assert "exit status 1; error: no such thing as baseline" in line and "output.txt" in line
    assert read_result(runs[1]) is not None
    control(tmp_path, "baseline", "")
    assert runner.run(runs) == []
    assert [len(starts(run)) for run in runs] == [2, 1]


def test_a_training_without_figures_is_a_failure(runner, runs, said, script):
    script.write_text(script.read_text().replace("results.json", "other.json"))
    assert runner.run(runs) == runs
    assert any("results.json holds no figures of a search" in line for line in said)


def test_a_killed_row_continues(runner, runs, said, tmp_path):
    """Killed with -9 behind its first checkpoint: it failed; started again it resumes."""
    control(tmp_path, "baseline", "hang")
    thread = threading.Thread(target=lambda: runner.run(runs))
    thread.start()
    wait_for(
        lambda: (runs[0].folder / "output.txt").exists() and "hanging" in (runs[0].folder / "output.txt").read_text()
    )
    os.killpg(runner.active[0].process.pid, signal.SIGKILL)
    thread.join(30)
    assert any(
        line.startswith("FAILED baseline, seed 0: exit status -9, killed by SIGKILL; did the memory") for line in said
    )
    control(tmp_path, "baseline", "")
    assert runner.run(runs) == []
    assert starts(runs[0]) == ["new 1 -", "resumed 1 -"] and starts(runs[1]) == ["new 1 -"]
    assert json.loads((runs[0].folder / "result.json").read_text())["seconds"] is None


def test_rows_run_side_by_side_each_in_its_share(script, runs, said, tmp_path):
    for row in ROWS:
        control(tmp_path, row.name, "hang")
    runner = Runner(script, [Lane((0,), "5"), Lane((0, 1, 2), "7")], said.append, status_period=0.1)
    thread = threading.Thread(target=lambda: runner.run(runs))
    thread.start()
    wait_for(lambda: all(starts(run) for run in runs))
    wait_for(lambda: any("at iteration 7; dml, seed 0 at iteration 7, about 12 s left" in line for line in said))
    assert [starts(run) for run in runs] == [["new 1 5"], ["new 3 7"]]
    for training in list(runner.active):
        os.killpg(training.process.pid, signal.SIGKILL)
    thread.join(30)
    assert not thread.is_alive()


def test_a_folder_in_use_is_not_touched(runner, runs, said):
    runs[0].folder.mkdir(parents=True)
    with (runs[0].folder / ".lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert runner.run(runs) == [runs[0]]
    assert any("is in use by another process" in line for line in said)
    assert not starts(runs[0]) and starts(runs[1])


def test_an_interruption_ends_the_trainings_too(runner, runs, repository, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(repository / "tools")
    interrupt = importlib.import_module("reproduce").interrupt
    control(tmp_path, "baseline", "hang")
    log, before = runs[0].folder / "output.txt", signal.signal(signal.SIGTERM, interrupt)

    def terminate() -> None:
        wait_for(lambda: log.exists() and "hanging" in log.read_text())
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=terminate)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            runner.run(runs)
    finally:
        thread.join()
        signal.signal(signal.SIGTERM, before)
    with (runs[0].folder / ".lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # no training holds it any more
    assert starts(runs[0]) and not starts(runs[1])


def test_shares_of_the_machine():
    assert share(2, [0, 1, 2, 3, 4], []) == [Lane((0, 2, 4)), Lane((1, 3))]
    assert share(3, [4, 6], ["0", "2"]) == [Lane((4,), "0"), Lane((6,), "2"), Lane((4,), "0")]
    assert Lane((4, 5), "2").environment == {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "2"}
    assert Lane((4,)).environment == {"OMP_NUM_THREADS": "1"}
