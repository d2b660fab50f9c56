"""Independent blocks of work on all CPU threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """Runs blocks of work, one to a CPU thread; on a GPU one after the other.

    As a context manager it takes over the threads that PyTorch's operations would use (`torch.get_num_threads()`):
    until it ends, every operation runs on the thread that calls it. The blocks here consist of many short operations,
    and splitting every one of them over all threads makes each wait for the slowest; on a machine that does other work
    too, those waits cost several times the computation itself.
    """

    def __init__(self, device: torch.device | str):
        self.count = torch.get_num_threads() if torch.device(device).type == "cpu" else 1
        self._pool: ThreadPoolExecutor | None = None
        self._submitted: list[Future[None]] = []

    def __enter__(self) -> Workers:
        if self.count > 1:
            torch.set_num_threads(1)
            self._pool = ThreadPoolExecutor(self.count, initializer=torch.set_num_threads, initargs=(1,))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._pool is None:
            return
        self._pool.shutdown(cancel_futures=error is not None)
        torch.set_num_threads(self.count)
        if error is None:
            for future in self._submitted:
                future.result()

    def submit(self, function: Callable[[Item], None], item: Item) -> None:
        """Lets function(item) run beside what follows; it has run when the context ends, which raises its error."""
        if self._pool is None:
            function(item)
        else:
            self._submitted.append(self._pool.submit(function, item))

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yields function(item) for each item, in order. Tensors that it reads must not require gradients."""
        if self._pool is None:
            yield from map(function, items)
            return
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(self._pool.submit(function, item))
            # A short queue bounds what lies finished in memory.
            if len(pending) > 2 * self.count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


class Scratch(threading.local):
    """A buffer for each thread that is used again from block to block, which spares the system's page faults."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def zeros(self, size: int, device: torch.device) -> Tensor:
        """Returns a flat float32 tensor of zeros. It is valid until the thread's next call."""
        if len(self._buffer) < size or self._buffer.device != device:
            self._buffer = torch.empty(size, device=device)
        return self._buffer[:size].zero_()
