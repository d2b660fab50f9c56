"""Locks between the processes that write a folder: many write at once, one cleans up."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_PATIENCE = 10.0  # seconds that a clean-up waits for writers


@contextmanager
def shared_lock(path: Path | None) -> Iterator[None]:
    """Lock of a file that any number hold at a time, none where no path is given; waits for an exclusive one."""
    if path is None or sys.platform == "win32":
        yield
        return
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextmanager
def try_exclusive_lock(path: Path | None) -> Iterator[bool]:
    """Lock of a file that nobody else holds; the value says whether it was had before patience ran out."""
    if path is None or sys.platform == "win32":
        yield False
        return
    with open(path, "ab") as file:
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < end:
                    time.sleep(0.02)
                    continue
                yield False
                return
            yield True
            return
