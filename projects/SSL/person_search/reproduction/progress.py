"""How far a series of trainings is, and how long it will still take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..engine.curves import read_metrics
from ..errors import DatasetError


class Active(NamedTuple):
    """A training under way: its name, seconds since its start, last iteration logged, seconds left (both if known)."""

    name: str
    elapsed: float
    iteration: int | None
    left: float | None


def training_progress(metrics_file: Path) -> tuple[int | None, float | None]:
    """Last iteration of a training and the seconds that it expects to need still; None where nothing is logged yet."""
    try:
        metrics = read_metrics(metrics_file)
    except DatasetError:
        return None, None
    iterations, seconds = metrics.get("eta_seconds", ((), ()))
    if not len(iterations):
        return None, None
    return int(iterations[-1]), float(seconds[-1])


def seconds_left(done: Sequence[float], active: Sequence[Active], pending: int, jobs: int) -> float | None:
    """An estimate of the wall time until all trainings have ended, if one takes as long as another.

    Args:
        done: seconds that each finished training took.
        active: those under way.
        pending: number of those not begun.
        jobs: trainings side by side.

    Returns:
        seconds; None where no training says anything yet.
    """
    whole = [*done, *(a.elapsed + a.left for a in active if a.left is not None)]
    if not whole:
        return None
    mean = sum(whole) / len(whole)
    rest = [a.left if a.left is not None else max(mean - a.elapsed, 0.0) for a in active]
    lanes = max(1, min(jobs, len(rest) + pending))
    # No shorter than the longest under way, even where the others are nearly done.
    return max([(sum(rest) + pending * mean) / lanes, *rest])


def duration(seconds: float) -> str:
    """A length of time in words, such as "45 s", "12 min" or "3 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


def status(done: int, total: int, active: Sequence[Active], left: float | None) -> str:
    """One line: rows done, rows under way with their iteration, time left."""
    parts = [f"{done} of {total} runs done"]
    if active:
        under_way = (f"{a.name}" + ("" if a.iteration is None else f" at iteration {a.iteration}") for a in active)
        parts.append("training " + "; ".join(under_way))
    if left and done < total:
        parts.append(f"about {duration(left)} left")
    return ", ".join(parts)
