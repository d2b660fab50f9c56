"""Worker processes that fail end a run with one line, and are refused where they would."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import time
from types import SimpleNamespace

import pytest
from person_search.data.loader import build_bank_loader, build_test_loader, build_train_loader
from person_search.data.workers import check_shared_memory, failure_of_workers
from person_search.errors import ConfigError, LoaderError

RECORDS = [{"file_name": f"{i}.jpg", "image_id": str(i), "annotations": []} for i in range(4)]


class Unsendable:
    """What a worker cannot hand over, as when shared memory is full."""

    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        raise self.error


def stuck(record):
    time.sleep(60)


def killed(record):
    os.kill(os.getpid(), signal.SIGKILL)


def without_shared_memory(record):
    return {"image": Unsendable(OSError(errno.ENOSPC, "No space left on device"))}


def with_a_bug(record):
    return {"image": Unsendable(TypeError("cannot pickle it"))}


def train(mapper, **options):
    return build_train_loader(RECORDS, mapper, batch_size=1, seed=0, rank=0, world_size=1, **options)


def evaluate(mapper, **options):
    return build_test_loader(RECORDS, mapper, **options)


def fill(mapper, **options):
    return build_bank_loader(RECORDS, mapper, **options)


@pytest.mark.parametrize("build", [train, evaluate, fill])
@pytest.mark.parametrize(
    ("mapper", "timeout", "message"),
    [
        (stuck, 1.0, r"worker processes .* sent nothing for 1 s: .*DATALOADER.TIMEOUT .*df -h /dev/shm"),
        (killed, 30.0, r"one of the 1 worker processes .* has died \(.*killed by signal: Killed.*lower"),
        (without_shared_memory, 30.0, r"have run out of shared memory in /dev/shm: .*--shm-size"),
        (with_a_bug, 30.0, r"one of the 1 worker processes .* has died"),
    ],
)
def test_a_worker_that_fails_ends_the_run_with_one_line(build, mapper, timeout, message):
    start = time.monotonic()
    with pytest.raises(LoaderError, match=message) as error:
        next(iter(build(mapper, num_workers=1, timeout=timeout)))
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 25


def test_an_error_of_the_main_process_is_not_the_workers():
    def broken(record):
        raise RuntimeError("a bug of the mapper")

    with pytest.raises(RuntimeError, match="a bug of the mapper"):
        next(iter(train(broken)))


def test_workers_leave_ctrl_c_to_the_main_process():
    loader = train(lambda record: {"ignored": signal.getsignal(signal.SIGINT) == signal.SIG_IGN}, num_workers=1)
    assert next(iter(loader))[0]["ignored"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("received 0 items of ancdata"), "run out of open files: raise the limit"),
        (OSError(errno.EMFILE, "Too many open files"), "run out of open files"),
        (RuntimeError("unable to write to file </torch_1>: No space left on device (28)"), "run out of shared memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is"), "run out of shared memory"),
        (RuntimeError("something else"), None),
    ],
)
def test_what_failed_workers_lack(error, message):
    found = failure_of_workers(error, SimpleNamespace(num_workers=2, timeout=1.0))
    assert found is None if message is None else message in found
    assert failure_of_workers(error, SimpleNamespace(num_workers=0, timeout=0)) is None


def test_shared_memory_that_is_too_small_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=64 << 20))
    check_shared_memory(4, 7 << 20, folder=str(tmp_path))
    with pytest.raises(ConfigError, match=r"NUM_WORKERS 4 needs some 73 MiB .* has 64 MiB free: .*--shm-size"):
        check_shared_memory(4, 8 << 20, folder=str(tmp_path))
    with pytest.raises(ConfigError, match="batches of 2 processes"):
        check_shared_memory(4, 7 << 20, 2, folder=str(tmp_path))
    check_shared_memory(0, 1 << 40, folder=str(tmp_path))
    check_shared_memory(4, 1 << 40, folder=str(tmp_path / "no such system"))
