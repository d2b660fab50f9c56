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


def current_mb() -> float:
    """Resident memory in MiB; 0 where the system does not tell it."""
    return _status_mb("VmRSS") or 0.0


def peak_mb() -> float:
    """Largest resident memory in MiB."""
    # getrusage hands the figure down from the process that starts this one, so it may be that one's peak.
    peak = _status_mb("VmHWM")
    if peak is not None:
        return peak
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _status_mb(name: str) -> float | None:
    status = _PROC / "status"
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) / 2**10
