"""Two processes without a GPU: spawned, started by torchrun, on two machines of a SLURM cluster, stopped by Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from person_search.engine.processes import Place, place_of_this_process
from person_search.errors import ConfigError

CONFIG = """
_BASE_: synthetic.yaml
DATASETS: {TRAIN: ["synthetic_tiny_train"], TEST: []}
INPUT: {MIN_SIZE_TRAIN: "(96,)", MAX_SIZE_TRAIN: 171}
SSL: {CLUSTERING: {K1: 8, K2: 3}, MEMORY: {CALIBRATION_FRAMES: 4}, EXEMPLAR: {SCALES: "((24, 12),)"}}
SOLVER: {MAX_ITER: 9, LOG_PERIOD: 1, CHECKPOINT_EPOCHS: 0}
"""
pytestmark = pytest.mark.timeout(900)  # programs that start programs, each of which imports PyTorch
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]

PORT = 20000 + os.getpid() % 10000 * 2

Run = Callable[..., subprocess.Popen]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    (folder / "tiny.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def start(folder: Path, repository: Path) -> Iterator[Run]:
    """Starts a training in a process group of its own, which heeds Ctrl-C as at a terminal."""

    started = []

    def start(launcher: list[str], name: str, *words: str, **environment: str) -> subprocess.Popen:
        arguments = ["--config-file", str(folder / "tiny.yaml"), *words, "OUTPUT_DIR", str(folder / name)]
        process = subprocess.Popen(
            [*launcher, *arguments],
            cwd=repository,
            env={**os.environ, "DETECTRON2_DATASETS": str(folder), "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:  # a test that failed; torchrun ends its processes
            process.terminate()
            process.wait(timeout=60)


def finished(process: subprocess.Popen, status: int = 0) -> str:
    """What a training that ends with `status` has printed."""
    printed, _ = process.communicate(timeout=250)
    assert process.returncode == status, printed
    return printed


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model_final.pth")["model"]


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert not [key for key in one if not torch.equal(one[key], other[key]) and "num_batches" not in key]


@pytest.fixture(scope="module")
def spawned(start: Run, folder: Path) -> dict[str, torch.Tensor]:
    printed = finished(start([sys.executable, "train_net.py"], "spawned", "--num-gpus", "2", "--dist-url", "auto"))
    assert "in 2 processes" in printed
    return weights(folder / "spawned")


def test_torchruns_processes_join_and_train_as_spawned_ones_do(start, folder, spawned):
    printed = finished(start([*TORCHRUN, "--standalone", "--nproc_per_node", "2", "train_net.py"], "joined"))
    assert printed.count("in 2 processes") == 1 and printed.count("Starting training from iteration 0") == 1
    assert (folder / "joined" / "log.txt.rank1").exists()
    assert_equal(weights(folder / "joined"), spawned)


def test_the_script_for_slurm_joins_two_machines(start, folder, repository, spawned):
    """Stand-ins for SLURM's programs make both machines of this one."""
    programs = folder / "bin"
    programs.mkdir()
    stand_ins = {
        "scontrol": "echo localhost",
        "srun": 'export SLURM_STEP_NUM_TASKS=2\n"$@" & first=$!\n"$@"; status=$?\nwait $first && exit $status',
        "torchrun": f'exec {" ".join(TORCHRUN)} "$@"',
    }
    for name, content in stand_ins.items():
        (programs / name).write_text(f"#!/usr/bin/env bash\n{content}\n")
        (programs / name).chmod(0o755)
    job = {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7", "PROCESSES_PER_NODE": "1"}
    path = f"{programs}:{os.environ['PATH']}"
    script = str(repository / "tools" / "train_slurm.sh")
    printed = finished(start(["bash", script], "slurm", PATH=path, PORT=str(PORT), **job))
    assert printed.count("in 2 processes") == 1
    assert_equal(weights(folder / "slurm"), spawned)


def test_machines_of_num_machines_train_together(start, folder, spawned):
    url = f"tcp://127.0.0.1:{PORT + 1}"
    words = ["--num-machines", "2", "--dist-url", url, "--machine-rank"]
    first, second = (start([sys.executable, "train_net.py"], "machines", *words, rank) for rank in "01")
    assert finished(first).count("in 2 processes") == 1
    finished(second)
    assert_equal(weights(folder / "machines"), spawned)


@pytest.mark.parametrize("launcher", ["spawned", "torchrun"])
def test_ctrl_c_saves_says_how_to_go_on_and_resumes_to_the_unbroken_run(start, folder, spawned, launcher):
    name = f"stopped_{launcher}"
    command, words = [sys.executable, "train_net.py"], ["--num-gpus", "2", "--dist-url", "auto"]
    if launcher == "torchrun":
        command, words = [*TORCHRUN, "--standalone", "--nproc_per_node", "2", "train_net.py"], []
    process = start(command, name, *words)
    metrics = folder / name / "metrics.json"
    while process.poll() is None and not (metrics.exists() and metrics.stat().st_size):
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as the terminal does
    printed, _ = process.communicate(timeout=250)
    assert re.search(r"stopped after \d+ of 9 iterations, checkpoint saved: .* --resume", printed), printed
    assert (folder / name / "last_checkpoint").exists() and not (folder / name / "model_final.pth").exists()
    if launcher == "spawned":  # torchrun ends with a traceback of its own
        assert process.returncode == 130 and "Traceback" not in printed, printed
        finished(start(command, name, *words, "--resume"))
        assert_equal(weights(folder / name), spawned)


def test_places_that_torchrun_gives():
    place = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "n1"}
    assert place_of_this_process({**place, "MASTER_PORT": "29500", "SLURM_STEP_NUM_TASKS": "2"}) == Place(5, 8, 1, 4)
    alone = {**place, "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "0"}
    assert place_of_this_process(alone) is None
    assert place_of_this_process({"RANK": "0", "SLURM_STEP_NUM_TASKS": "1"}) is None
    with pytest.raises(ConfigError, match="7 processes, 4 of them on this machine: start the same number on each"):
        place_of_this_process({**place, "WORLD_SIZE": "7", "MASTER_PORT": "29500"})
    with pytest.raises(ConfigError, match="srun has started 8 processes, .*tools/train_slurm.sh"):
        place_of_this_process({"SLURM_STEP_NUM_TASKS": "8"})


def test_processes_beside_those_of_torchrun_are_refused(start):
    command = [*TORCHRUN, "--standalone", "--nproc_per_node", "2", "train_net.py"]
    process = start(command, "refused", "--num-gpus", "4")
    printed, _ = process.communicate(timeout=250)
    assert process.returncode and "omit --num-gpus and --num-machines" in printed
