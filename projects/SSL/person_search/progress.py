"""Progress of long-running work: rate and time left."""

from __future__ import annotations

import logging
import time

from detectron2.utils.logger import log_every_n_seconds

_SECONDS_A_LINE = 5


def duration(seconds: float) -> str:
    """Duration in words, such as "45 s", "12 min" or "3 h 05 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"


class Progress:
    """Rate, time left and share of time spent waiting for input, logged every few seconds.

    Work is assumed to be split evenly over the processes.
    """

    def __init__(self, name: str, total: int, unit: str, *, processes: int = 1) -> None:
        """
        Args:
            name: name of the work.
            total: number of units over all processes.
            unit: name of a unit in the plural, such as "frames".
            processes: number of processes.
        """
        self._name, self._total, self._unit, self._processes = name, total, unit, processes
        self._own, self._waited = 0, 0.0
        self._start = self._last = time.perf_counter()

    def loaded(self) -> None:
        """Marks that the next input has been loaded."""
        self._waited += time.perf_counter() - self._last

    def finished(self, units: int) -> None:
        """Counts units as done."""
        self._own += units
        self._last = time.perf_counter()
        log_every_n_seconds(logging.INFO, self.line(), n=_SECONDS_A_LINE, name=__name__)

    def line(self) -> str:
        """Current state in one line."""
        done, seconds = self._done(), self._seconds()
        left = (self._total - done) * seconds / done if done else 0.0
        waiting = f" ({self._waited / seconds:.0%} of the time waiting for input)" if self._waited else ""
        return (
            f"{self._name}: {done} of {self._total} {self._unit}, {done / seconds:.3g} {self._unit}/s, "
            f"{duration(left)} left{waiting}"
        )

    def summary(self) -> str:
        """Summary of the finished work in one line."""
        rate, taken = self._done() / self._seconds(), duration(self._seconds())
        shared = f" on {self._processes} processes" if self._processes > 1 else ""
        return f"{self._name}: {self._done()} {self._unit} in {taken}, {rate:.3g} {self._unit}/s{shared}"

    def _done(self) -> int:
        return min(self._own * self._processes, self._total)

    def _seconds(self) -> float:
        return max(self._last - self._start, 1e-9)
