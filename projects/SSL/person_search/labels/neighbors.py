"""Nearest neighbors of all rows of a feature matrix, computed tile by tile without an (N, N) array."""

from __future__ import annotations

import itertools
import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from ..tf32 import full_precision

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """Executor of blocks of work, in parallel on CPU threads, sequentially on a GPU.

    As a context manager, it takes over the threads of PyTorch's operations (`torch.get_num_threads()`): within, every
    operation runs on its calling thread. Blocks consist of many short operations; splitting each over all threads would
    make it wait for the slowest, which on a busy machine costs several times the computation itself.
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
        """Runs function(item) in the background; it has finished, or its error is raised, when the context ends."""
        if self._pool is None:
            function(item)
        else:
            self._submitted.append(self._pool.submit(function, item))

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results of function(item), in order. Tensors that it reads must not require gradients."""
        if self._pool is None:
            yield from map(function, items)
            return
        pending: deque[Future[Result]] = deque()
        for item in items:
            pending.append(self._pool.submit(function, item))
            # A short queue bounds the finished results in memory.
            if len(pending) > 2 * self.count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


class Scratch(threading.local):
    """Reusable buffer per thread, which avoids page faults."""

    def __init__(self) -> None:
        self._buffer = torch.empty(0)

    def zeros(self, size: int, device: torch.device) -> Tensor:
        """Flat float32 tensor of zeros, valid until the thread's next call."""
        if len(self._buffer) < size or self._buffer.device != device:
            self._buffer = torch.empty(size, device=device)
        return self._buffer[:size].zero_()


# Maximum tile of similarities, rows x columns. 16 MiB on the CPU: nearly full speed of the matrix product, and still
# within a large cache. 1 GiB on a GPU.
_TILE_CPU = (1024, 4096)
_TILE_GPU = (8192, 32768)
# Number of columns in a group, whose maximum is compared first; divides the rows of a full tile.
_GROUP = 8
# Number of similarities whose selection costs about as much as inspecting one group.
_WORTH_SELECTING = 64
# Deviation of a squared norm from 1 above which ranking by inner product differs from ranking by distance.
_UNIT_TOLERANCE = 1e-5


def nearest_neighbors(features: Tensor, k: int, progress: bool = False) -> Tensor:
    """Nearest rows of each row by Euclidean distance, the row itself first.

    Args:
        features: (N, d) float32, finite, on any device, not necessarily of unit length.
        k: number of neighbors, including the row itself.
        progress: whether to show a progress bar on stderr.

    Returns:
        (N, min(k, N)) int64 rows by ascending distance, on the device of `features`. Column 0 is the row itself, even
        if other rows are identical; the order among equal distances is unspecified.

    Raises:
        ValueError: k is below 1.
    """
    if k < 1:
        raise ValueError(f"k is {k}, expected 1 or more: neighbors include the row itself")
    k = min(k, len(features))
    if len(features) == 0:
        return torch.zeros((0, 0), dtype=torch.int64, device=features.device)
    return _search_exact(features, k, progress)


def half_squared_norms(features: Tensor) -> Tensor | None:
    """Half of the squared norms, |x|^2 / 2 (N,) float32; None if all rows have unit length, where it is constant."""
    squared = features.square().sum(1)
    if len(squared) == 0 or bool((squared - 1).abs().max() <= _UNIT_TOLERANCE):
        return None
    return squared / 2


# Pairs from a tile: row, similarity and column, (n,) each, ordered by row.
_Pairs = tuple[Tensor, Tensor, Tensor]


class _BestSoFar:
    """Running k most similar columns of each row, most similar first."""

    def __init__(self, rows: int, k: int, device: torch.device):
        self.k = k
        self.similarity = torch.full((rows, k), -math.inf, device=device)
        self.index = torch.zeros((rows, k), dtype=torch.int64, device=device)

    def merge(self, row: Tensor, value: Tensor, column: Tensor) -> None:
        """Merges pairs, ordered by row."""
        if len(row) == 0:
            return
        rows, group, counts = torch.unique_consecutive(row, return_inverse=True, return_counts=True)
        place = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[group]
        values = value.new_full((len(rows), int(counts.max())), -math.inf)
        columns = torch.zeros_like(values, dtype=torch.int64)
        values[group, place] = value
        columns[group, place] = column
        values = torch.cat([self.similarity[rows], values], dim=1)
        columns = torch.cat([self.index[rows], columns], dim=1)
        self.similarity[rows], chosen = values.topk(self.k, dim=1)
        self.index[rows] = columns.gather(1, chosen)

    def select(self, start: int, tile: Tensor, first_column: int) -> _Pairs:
        """Pairs of a tile that may be among the k best of their rows.

        Once a row has seen many columns, few others exceed its k-th best. Maxima over groups of columns cost a fraction
        of a selection, and only groups with a maximum above that bound are inspected.

        Args:
            start, first_column: row and column of the tile's corner.
            tile: (r, c) similarities.
        """
        count, width = tile.shape
        found = self._groups(start, tile.view(count, _GROUP, -1).amax(1)) if width % _GROUP == 0 else None
        if found is None:
            return self._most_similar(start, tile, first_column)
        row, group, bound = found
        column = group[:, None] + width // _GROUP * torch.arange(_GROUP, device=tile.device)
        return _above(tile, row[:, None] * width + column, row, column, bound, (start, first_column))

    def select_mirrored(self, start: int, tile: Tensor, first_column: int) -> _Pairs:
        """Like `select`, for a transposed tile: tile[j, i] belongs to row start + i and column first_column + j."""
        found = self._groups(start, tile.view(-1, _GROUP, tile.shape[1]).amax(1).T.contiguous())
        if found is None:
            return self._most_similar(start, tile.T.contiguous(), first_column)
        row, group, bound = found
        column = group[:, None] * _GROUP + torch.arange(_GROUP, device=tile.device)
        return _above(tile, column * tile.shape[1] + row[:, None], row, column, bound, (start, first_column))

    def _groups(self, start: int, maxima: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Groups of new columns, as (row, group, bound) of (n,) each, with a pair above the bound set by the k best of
        their row; None if they are so many that a selection is cheaper.

        The bound of a row with few columns so far comes from the maxima (r, g) of the groups, k of which are its pairs.
        """
        bound = self.similarity[start : start + len(maxima), -1]
        hits = maxima > bound[:, None]
        if int(hits.count_nonzero()) * _WORTH_SELECTING > maxima.numel() * _GROUP:
            if maxima.shape[1] < self.k:
                return None
            least = maxima.topk(self.k, dim=1, sorted=False).values.amin(1)
            least = least.nextafter(torch.full_like(least, -math.inf))  # so that the bound itself passes
            bound = torch.maximum(bound, least)
            hits = maxima > bound[:, None]
            # More groups than these exceed the bound only if many similarities are equal.
            if int(hits.count_nonzero()) > 2 * self.k * len(maxima):
                return None
        row, group = hits.nonzero(as_tuple=True)
        return row, group, bound[row]

    def _most_similar(self, start: int, tile: Tensor, first_column: int) -> _Pairs:
        """k most similar pairs of each row of a tile."""
        value, column = tile.topk(min(self.k, tile.shape[1]), dim=1, sorted=False)
        row = torch.arange(len(tile), device=tile.device).repeat_interleave(column.shape[1])
        return row + start, value.flatten(), column.flatten() + first_column


def _above(tile: Tensor, place: Tensor, row: Tensor, column: Tensor, bound: Tensor, corner: tuple[int, int]) -> _Pairs:
    """Pairs above their bound, from groups (n, _GROUP) at the positions `place` in the flat tile.

    A flat index is read several times faster than two indices.
    """
    value = tile.reshape(-1).index_select(0, place.flatten()).view_as(place)
    hit, member = (value > bound[:, None]).nonzero(as_tuple=True)
    return row[hit] + corner[0], value[hit, member], column[hit, member] + corner[1]


def _search_exact(features: Tensor, k: int, progress: bool) -> Tensor:
    """Exact search over all pairs. Each inner product is computed once: a tile above the diagonal serves its rows and
    its columns.

    Tiles of a panel of rows are independent except for these rows, whose pairs are merged afterwards in order, so the
    result depends neither on the number of threads nor on timing. Later panels do not use these rows, so merging runs
    beside their tiles.
    """
    count, device = len(features), features.device
    tile_rows, tile_columns = _TILE_CPU if device.type == "cpu" else _TILE_GPU
    half = half_squared_norms(features)
    best = _BestSoFar(count, k, device)

    def work(corners: tuple[int, int, int]) -> _Pairs:
        start, left, right = corners
        stop = min(start + tile_rows, count)
        tile = features[start:stop] @ features[left:right].T
        if left < stop:
            tile[left - start :].diagonal().fill_(math.inf)
        below = max(stop, left)
        if below < right:
            mirrored = tile[:, below - left :]
            best.merge(
                *best.select_mirrored(below, mirrored if half is None else mirrored - half[start:stop, None], start)
            )
        return best.select(start, tile if half is None else tile - half[left:right], left)

    def finish(tiles: list[_Pairs]) -> None:
        pairs = [torch.cat(part) for part in zip(*tiles, strict=True)]
        order = pairs[0].argsort(stable=True)
        best.merge(*(part[order] for part in pairs))

    with full_precision(), Workers(device) as workers:
        for start in tqdm(range(0, count, tile_rows), desc="nearest neighbors", disable=not progress):
            # Narrow enough to be shared evenly among workers.
            width = math.ceil((count - start) / (4 * workers.count) / tile_rows) * tile_rows
            tiles = [(start, left, right) for left, right in _columns(start, count, min(width, tile_columns))]
            workers.submit(finish, list(workers.map(work, tiles)))
    return best.index


def _columns(start: int, count: int, width: int) -> list[tuple[int, int]]:
    """Ranges (left, right) of one width covering start .. count; the remainder of full groups is cut off at the end."""
    whole = count - (count - start) % _GROUP
    edges = [*range(start, whole, width), whole, count]
    return [(left, right) for left, right in itertools.pairwise(edges) if left < right]
