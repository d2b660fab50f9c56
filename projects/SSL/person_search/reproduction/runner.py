"""Trainings of a table run through train_net.py: several side by side, resumed, with progress and time left."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch

from ..errors import DatasetError, PersonSearchError
from ..progress import duration
from ..report.training_curves import read_metrics
from .runs import EFFECTIVE_CONFIG, OUTPUT_LOG, Run, lock, prepare, read_result, write_result


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
    if "eta_seconds" not in metrics or not len(metrics["eta_seconds"][0]):
        return None, None
    iterations, seconds = metrics["eta_seconds"]
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


def status(done: int, total: int, active: Sequence[Active], left: float | None) -> str:
    """One line: rows done, rows under way with their iteration, time left."""
    parts = [f"{done} of {total} runs done"]
    if active:
        under_way = (f"{a.name}" + ("" if a.iteration is None else f" at iteration {a.iteration}") for a in active)
        parts.append("training " + "; ".join(under_way))
    if left and done < total:
        parts.append(f"about {duration(left)} left")
    return ", ".join(parts)


_POLL = 0.2  # seconds between two looks at the trainings
_GRACE = 20.0  # seconds that a training gets to end when it is told to


@dataclass(frozen=True)
class Lane:
    """A share of the machine.

    Attributes:
        cores: CPU cores.
        gpu: as in CUDA_VISIBLE_DEVICES; "": none.
    """

    cores: tuple[int, ...]
    gpu: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that keep a training to its share."""
        gpu = {"CUDA_VISIBLE_DEVICES": self.gpu} if self.gpu else {}
        return {"OMP_NUM_THREADS": str(len(self.cores)), **gpu}


@dataclass
class _Training:
    run: Run
    lane: Lane
    process: subprocess.Popen[bytes]
    lock: BinaryIO
    resumed: bool
    start: float


def share(jobs: int, cores: Sequence[int], gpus: Sequence[str]) -> list[Lane]:
    """Parts of the machine for trainings side by side, of equal size but for a core; all that are left are used.

    Args:
        jobs: how many parts.
        cores: CPU cores; where there are fewer than jobs, some are used by several.
        gpus: each part gets one, in turn.
    """
    lanes = []
    for job in range(jobs):
        own = tuple(cores[job::jobs]) or (cores[job % len(cores)],)
        lanes.append(Lane(own, gpus[job % len(gpus)] if gpus else ""))
    return lanes


def own_cores() -> list[int]:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def visible_gpus() -> list[str]:
    """GPUs that this process may use, as in CUDA_VISIBLE_DEVICES."""
    if not torch.cuda.is_available():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(number) for number in range(torch.cuda.device_count())]


class Runner:
    """Trains runs with train_net.py, one process for each.

    A finished run is left as it is. One that was cut off continues from its last checkpoint, one whose config has
    changed starts anew. A run that fails is reported, and the others go on.
    """

    def __init__(
        self,
        script: Path,
        lanes: Sequence[Lane],
        say: Callable[[str], None] = print,
        finished: Callable[[], object] = lambda: None,
        status_period: float = 60.0,
    ) -> None:
        """
        Args:
            script: train_net.py.
            lanes: one training at a time runs in each.
            say: takes a line for the user.
            finished: is called after each run that has ended well.
            status_period: seconds from one line about the state of things to the next.
        """
        self._script, self._lanes = script, list(lanes)
        self._say, self._finished, self._status_period = say, finished, status_period
        self.active: list[_Training] = []
        self._seconds: list[float] = []

    def run(self, runs: Sequence[Run]) -> list[Run]:
        """Trains what is not finished and returns the runs that failed."""
        results = {run.folder: read_result(run) for run in runs}
        pending = deque(run for run in runs if results[run.folder] is None)
        self._seconds = [r["seconds"] for r in results.values() if r is not None and r.get("seconds")]
        self._say(f"{len(runs)} runs, {len(runs) - len(pending)} of them finished before")
        free, failed, last_status = deque(self._lanes), [], time.monotonic()
        try:
            while pending or self.active:
                while pending and free:
                    lane, run = free.popleft(), pending.popleft()
                    if not self._start(run, lane):
                        failed.append(run)
                        free.append(lane)
                for training in [t for t in self.active if t.process.poll() is not None]:
                    free.append(training.lane)
                    if not self._end(training):
                        failed.append(training.run)
                    self._say(self._status(len(runs), len(pending), len(failed)))
                if time.monotonic() - last_status >= self._status_period:
                    self._say(self._status(len(runs), len(pending), len(failed)))
                    last_status = time.monotonic()
                time.sleep(_POLL if self.active else 0)
        finally:
            self._stop()
        return failed

    def _start(self, run: Run, lane: Lane) -> bool:
        try:
            held = lock(run)
        except PersonSearchError as error:
            self._say(f"FAILED {run.name}: {error}")
            return False
        resumed = prepare(run)
        command = [sys.executable, str(self._script), "--config-file", str(run.folder / EFFECTIVE_CONFIG)]
        command += ["--num-gpus", "1", *(["--resume"] if resumed else [])]
        setting = " ".join(f"{key}={value}" for key, value in lane.environment.items())
        self._say(f"{run.name}{' (resumed)' if resumed else ''}: $ {setting} {shlex.join(command)}")
        with (run.folder / OUTPUT_LOG).open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **lane.environment},
                pass_fds=(held.fileno(),),
                start_new_session=True,
            )
        if hasattr(os, "sched_setaffinity"):
            # A training that has ended already has failed and is reported as such.
            with contextlib.suppress(OSError):
                os.sched_setaffinity(process.pid, lane.cores)
        self.active.append(_Training(run, lane, process, held, resumed, time.monotonic()))
        return True

    def _end(self, training: _Training) -> bool:
        self.active.remove(training)
        run, seconds = training.run, time.monotonic() - training.start
        try:
            if training.process.returncode < 0:
                raise PersonSearchError(_killed(training.process.returncode))
            if training.process.returncode:
                raise PersonSearchError(f"exit status {training.process.returncode}; {_last_line(run)}")
            result = write_result(run, None if training.resumed else seconds)
        except PersonSearchError as error:
            self._say(f"FAILED {run.name}: {error}; all of its output is in {run.folder / OUTPUT_LOG}")
            return False
        finally:
            training.lock.close()
        self._seconds.append(seconds)
        search = result["figures"]["search"]
        self._say(f"{run.name}: mAP {search['mAP']:.1f} %, top-1 {search['top1']:.1f} %, {seconds:.0f} s")
        self._finished()
        return True

    def _status(self, total: int, pending: int, failed: int) -> str:
        now, active = time.monotonic(), []
        for training in self.active:
            iteration, left = training_progress(training.run.folder / "metrics.json")
            active.append(Active(training.run.name, now - training.start, iteration, left))
        left = seconds_left(self._seconds, active, pending, len(self._lanes))
        line = status(total - pending - len(active) - failed, total, active, left)
        return line + (f", {failed} FAILED" if failed else "")

    def _stop(self) -> None:
        """Ends what is still under way, with the worker processes of its loaders."""
        for sign in (signal.SIGTERM, signal.SIGKILL):
            for training in self.active:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(training.process.pid, sign)
            deadline = time.monotonic() + _GRACE
            for training in self.active:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    training.process.wait(max(0.0, deadline - time.monotonic()))
        for training in self.active:
            training.lock.close()
        self.active = []


def _killed(status: int) -> str:
    """What ended a training that a signal ended (a negative exit status); its own output does not say it."""
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = "a signal"
    hint = "; did the memory run out? Fewer --jobs need less" if name == "SIGKILL" else ""
    return f"exit status {status}, killed by {name}{hint}"


def _last_line(run: Run) -> str:
    lines = (run.folder / OUTPUT_LOG).read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip()[-400:] for line in reversed(lines) if line.strip()), "it has printed nothing")
