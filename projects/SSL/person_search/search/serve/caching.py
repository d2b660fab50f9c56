"""Memory for what is made again otherwise: least recently used first to go."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class LimitedCache(Generic[V]):
    """Cache of values whose sizes together stay below a limit; safe to use from several threads.

    Args:
        limit: largest sum of sizes; one value larger than that is kept alone.
        size: size of a value, 1 by default (the limit counts values then).
        dropped: called with every value that goes.
    """

    def __init__(
        self, limit: int, size: Callable[[V], int] = lambda value: 1, dropped: Callable[[V], None] | None = None
    ) -> None:
        self._limit, self._size, self._dropped = limit, size, dropped
        self._values: OrderedDict[Hashable, V] = OrderedDict()
        self._total = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> V | None:
        """The value of a key, None where there is none."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Hashable, value: V) -> None:
        """Keeps a value; others go until the limit holds."""
        with self._lock:
            gone = self._pop(key)
            self._values[key] = value
            self._total += self._size(value)
            while self._total > self._limit and len(self._values) > 1:
                gone += self._pop(next(iter(self._values)))
        self._announce(gone)

    def clear(self) -> None:
        """Drops everything."""
        with self._lock:
            gone = [value for key in list(self._values) for value in self._pop(key)]
        self._announce(gone)

    def _pop(self, key: Hashable) -> list[V]:
        if key not in self._values:
            return []
        value = self._values.pop(key)
        self._total -= self._size(value)
        return [value]

    def _announce(self, gone: list[V]) -> None:
        if self._dropped is not None:
            for value in gone:
                self._dropped(value)
