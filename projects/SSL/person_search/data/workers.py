"""Worker processes that read images: start, needs, and diagnosis of failures."""

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
"""Seconds to wait for a batch before giving up."""

SHARED_MEMORY = "/dev/shm"
PREFETCHED = 2  # batches prefetched per worker, PyTorch's default
_MEBIBYTE = 1 << 20
_ADVICE = (
    "give the container more (docker run --shm-size=2g, or --ipc=host), or lower DATALOADER.NUM_WORKERS; with 0 images "
    "are read in the main process"
)


def worker_arguments(num_workers: int, timeout: float) -> dict[str, Any]:
    """Arguments of a `DataLoader` with `num_workers` processes and a timeout in seconds."""
    if not num_workers:
        return {"num_workers": 0}
    return {"num_workers": num_workers, "timeout": timeout, "worker_init_fn": _start}


def _start(_number: int) -> None:
    """Initialization of a worker.

    Ctrl-C is left to the main process, which finishes its iteration and needs its workers for that. A batch that cannot
    be sent ends the worker: Python's queues would print a traceback and drop it, and the main process would wait.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    setattr(multiprocessing.queues.Queue, "_on_queue_feeder_error", staticmethod(_give_up))  # noqa: B010  (untyped)


def _give_up(error: BaseException, _object: Any) -> None:
    print(f"A worker cannot send its images: {error}", file=sys.stderr, flush=True)
    os._exit(errno.ENOSPC if _lacks_memory(error) else 1)


def _lacks_memory(error: BaseException) -> bool:
    return is_disk_full(error) or "No space left on device" in str(error) or "shared memory" in str(error)


def _told(error: BaseException) -> list[str]:
    """Messages of an error and its causes, outermost first."""
    texts: list[str] = []
    link: BaseException | None = error
    while link is not None:
        texts.append(str(link))
        link = link.__cause__ or link.__context__
    return [text for text in texts if text]


def failure_of_workers(error: Exception, loader: DataLoader[Any]) -> str | None:
    """Message about failed workers, with advice, for an error raised by a loader; None for other errors."""
    text = " ".join(_told(error))
    workers = f"the {loader.num_workers} worker processes that read images"
    if not loader.num_workers:
        return None
    if "DataLoader timed out after" in text:
        return (
            f"{workers} sent nothing for {loader.timeout:g} s: if the disk is slow, raise DATALOADER.TIMEOUT (0 to "
            f"wait forever); otherwise check whether {SHARED_MEMORY} is full (df -h {SHARED_MEMORY}) and {_ADVICE}"
        )
    if "received 0 items of ancdata" in text or getattr(error, "errno", None) == errno.EMFILE:
        return f"{workers} have run out of open files: raise the limit (ulimit -n 8192) or lower DATALOADER.NUM_WORKERS"
    if _lacks_memory(error) or f"exit code {errno.ENOSPC}" in text or "Bus error" in text:
        return f"{workers} have run out of shared memory in {SHARED_MEMORY}: {_ADVICE}"
    if "DataLoader worker (pid" in text:
        reason = _told(error)[-1].splitlines()[0].split(". ")[0]  # the root cause is the most specific
        return (
            f"one of {workers} has died ({reason}): usually the system is out of memory (see dmesg); lower "
            "DATALOADER.NUM_WORKERS, with 0 images are read in the main process"
        )
    return None


def check_shared_memory(num_workers: int, batch_bytes: int, processes: int = 1, folder: str = SHARED_MEMORY) -> None:
    """Checks that the batches of workers fit into the free shared memory.

    Args:
        num_workers: number of workers of each process.
        batch_bytes: size of a batch of one process.
        processes: number of processes with workers on this machine.
        folder: mount point of shared memory; systems without it are not checked.

    Raises:
        ConfigError: shared memory is too small; the message gives needed and free space.
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
