"""Largest memory of this process, for the benchmarks beside this file."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_PROC = Path("/proc/self")


def reset_peak() -> bool:
    """Lets `peak_mb` count from now on. Returns False where the system cannot (then it counts from the start)."""
    try:
        (_PROC / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_mb() -> float:
    """Largest resident memory in MiB."""
    status = _PROC / "status"
    if status.exists():
        # getrusage hands the figure down from the process that starts this one, so it may be that one's peak.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
