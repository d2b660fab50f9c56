"""Worker processes that read images: how they start, what they need, and what it means when they fail."""

from __future__ import annotations

import errno
import multiprocessing.queues
import os
import shutil
import signal
import sys
from typing import Any

from torch.utils.data import DataLoader

from ..errors import ConfigError
from ..io import is_disk_full

WORKER_TIMEOUT = 300.0
"""Seconds after which a batch that does not come is given up."""

SHARED_MEMORY = "/dev/shm"
PREFETCHED = 2  # batches that a worker keeps ready, PyTorch's default
_MEBIBYTE = 1 << 20
_ADVICE = (
    "give the container more (docker run --shm-size=2g, or --ipc=host), or set DATALOADER.NUM_WORKERS lower; 0 reads "
    "images in the main process"
)


def worker_arguments(num_workers: int, timeout: float) -> dict[str, Any]:
    """Arguments of a `DataLoader` for `num_workers` processes, whose batches are waited for `timeout` seconds."""
    if not num_workers:
        return {"num_workers": 0}
    return {"num_workers": num_workers, "timeout": timeout, "worker_init_fn": _start}


def _start(_number: int) -> None:
    """Runs at the start of a worker.

    Ctrl-C is the main process's: it finishes its iteration, for which it needs its workers. And a batch that cannot be
    handed over ends the worker: Python's queues would print a traceback and drop it, and the main process would wait.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    setattr(multiprocessing.queues.Queue, "_on_queue_feeder_error", staticmethod(_give_up))  # noqa: B010  (untyped)


def _give_up(error: BaseException, _object: Any) -> None:
    print(f"A worker cannot hand over its images: {error}", file=sys.stderr, flush=True)
    os._exit(errno.ENOSPC if _lacks_memory(error) else 1)


def _lacks_memory(error: BaseException) -> bool:
    return is_disk_full(error) or "No space left on device" in str(error) or "shared memory" in str(error)


def _told(error: BaseException) -> list[str]:
    """Texts of an error and of those that it was raised from, the last one first."""
    texts: list[str] = []
    link: BaseException | None = error
    while link is not None:
        texts.append(str(link))
        link = link.__cause__ or link.__context__
    return [text for text in texts if text]


def failure_of_workers(error: Exception, loader: DataLoader[Any]) -> str | None:
    """Message about the workers for an error that a loader has raised, and what to do; None: it is not about them."""
    text = " ".join(_told(error))
    workers = f"the {loader.num_workers} worker processes that read images"
    if not loader.num_workers:
        return None
    if "DataLoader timed out after" in text:
        return (
            f"{workers} gave nothing for {loader.timeout:g} s: where the disk is that slow, raise DATALOADER.TIMEOUT "
            f"(0: wait for ever); else look whether {SHARED_MEMORY} is full (df -h {SHARED_MEMORY}) and {_ADVICE}"
        )
    if "received 0 items of ancdata" in text or getattr(error, "errno", None) == errno.EMFILE:
        return f"{workers} have run out of open files: raise the limit (ulimit -n 8192) or lower DATALOADER.NUM_WORKERS"
    if _lacks_memory(error) or f"exit code {errno.ENOSPC}" in text or "Bus error" in text:
        return f"{workers} have run out of shared memory in {SHARED_MEMORY}: {_ADVICE}"
    if "DataLoader worker (pid" in text:
        reason = _told(error)[-1].splitlines()[0].split(". ")[0]  # the first that was raised knows most
        return (
            f"one of {workers} has died ({reason}): most often the system has no memory left (dmesg tells); lower "
            "DATALOADER.NUM_WORKERS, 0 reads images in the main process"
        )
    return None


def check_shared_memory(num_workers: int, batch_bytes: int, processes: int = 1, folder: str = SHARED_MEMORY) -> None:
    """Refuses workers whose batches do not fit into the shared memory that is free.

    Args:
        num_workers: of each process.
        batch_bytes: size of one batch of one process.
        processes: those on this machine that have workers of their own.
        folder: where shared memory is seen; a system without it is not checked.

    Raises:
        ConfigError: naming what is needed and what is there.
    """
    if not num_workers or not os.path.isdir(folder):
        return
    needed = processes * (num_workers * PREFETCHED + 1) * batch_bytes
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ConfigError(
            f"DATALOADER.NUM_WORKERS {num_workers} needs some {needed // _MEBIBYTE + 1} MiB of shared memory for the "
            f"batches of {'this process' if processes == 1 else f'{processes} processes'}, and {folder} has "
            f"{free // _MEBIBYTE} MiB free: {_ADVICE}"
        )
