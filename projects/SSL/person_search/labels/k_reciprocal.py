"""K-reciprocal encoding of rows as sparse distributions over the rows that they share neighbors with.

Zhong et al., "Re-ranking person re-identification with k-reciprocal encoding" (CVPR 2017), in the variant of SpCL (Ge
et al., NeurIPS 2020): k1 includes the row itself, and weights use the squared Euclidean distance.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .neighbors import Scratch, Workers

# Elements of the largest temporary array of a block of rows. On a GPU the (rows, N) array that marks the members of the
# rows' sets may be larger, since fewer blocks use it better.
_BLOCK_ELEMENTS = 1 << 22
_MARKED_ELEMENTS_GPU = 1 << 26


@dataclass(frozen=True)
class SparseRows:
    """Sparse square matrix in coordinate format, ordered by row, then by column.

    Attributes:
        count: number of rows and columns.
        row, column: (E,) int64.
        value: (E,) float32, not negative.
    """

    count: int
    row: Tensor
    column: Tensor
    value: Tensor

    @property
    def pointer(self) -> Tensor:
        """Row pointer (count + 1,) int64: entries of row i are pointer[i] .. pointer[i + 1] - 1."""
        ends = torch.bincount(self.row, minlength=self.count).cumsum(0)
        return torch.cat([ends.new_zeros(1), ends])


def encode(features: Tensor, ranks: Tensor, k1: int, k2: int, workers: Workers) -> SparseRows:
    """K-reciprocal codes of rows.

    Args:
        features: (N, d) float32.
        ranks: (N, min(k1, N)) int64, nearest rows of each row, itself first (see `nearest_neighbors`).
        k1: number of neighbors, including the row itself.
        k2: number of nearest rows, including the row itself, that codes are averaged over (local query expansion); 1
            for none.
        workers: executor of blocks of rows.

    Returns:
        Codes on the device of `features`. Each row sums to 1.
    """
    count = len(features)
    keys = _expanded_sets(ranks, k1, workers)
    row, column = keys // max(count, 1), keys % max(count, 1)
    weight = _gaussian_weights(features, row, column, workers)
    total = torch.zeros(count, device=features.device).index_add_(0, row, weight)
    codes = SparseRows(count, row, column, weight / total[row])
    return _mean_of_neighbors(codes, ranks[:, :k2], workers) if k2 > 1 else codes


def _expanded_sets(ranks: Tensor, k1: int, workers: Workers) -> Tensor:
    """Expanded k-reciprocal sets as sorted unique keys (E,) = row * N + member.

    The set R(i, k1) of a row is joined by the half-size set R(c, k1 / 2) of each member c that shares more than two
    thirds of it.
    """
    count, k = ranks.shape
    # The reference includes the row itself in k1 but not in half of k1, and rounds half to even.
    half = min(round(k1 / 2) + 1, k)
    full_sets, half_sets = _is_reciprocal(ranks, k, workers), _is_reciprocal(ranks, half, workers)
    nearest = ranks[:, :half].contiguous()
    elements = _BLOCK_ELEMENTS if ranks.device.type == "cpu" else _MARKED_ELEMENTS_GPU
    size = max(1, min(count, elements // max(count, 1)))
    scratch = Scratch()

    def work(start: int) -> Tensor:
        block, place = full_sets[start : start + size].nonzero(as_tuple=True)
        member = ranks[block + start, place]
        is_member = scratch.zeros(size * count, ranks.device)
        is_member[block * count + member] = 1
        # Half-size set of every member, as (P, half) rows and a mask of those that belong to it.
        candidate, belongs = nearest.index_select(0, member), half_sets.index_select(0, member)
        shared = is_member.index_select(0, (candidate + (block * count)[:, None]).flatten()).view_as(candidate)
        belongs &= (3 * (shared * belongs).sum(1) > 2 * belongs.sum(1))[:, None]
        source, place = belongs.nonzero(as_tuple=True)
        found = torch.cat([block * count + member, block[source] * count + candidate[source, place]])
        return torch.unique(found) + start * count

    return torch.cat([ranks.new_zeros(0), *workers.map(work, range(0, count, size))])


def _is_reciprocal(ranks: Tensor, size: int, workers: Workers) -> Tensor:
    """Mask (N, size) bool of a row's first `size` neighbors that have it among their own first `size`."""
    nearest = ranks[:, :size].int()
    own = torch.arange(len(ranks), dtype=torch.int32, device=ranks.device)

    def work(rows: Tensor) -> Tensor:
        back = nearest.index_select(0, nearest.index_select(0, rows).flatten())
        return (back.view(len(rows), size, size) == rows[:, None, None]).any(-1)

    blocks = own.split(max(1, _BLOCK_ELEMENTS // max(size * size, 1)))
    return torch.cat(list(workers.map(work, blocks)))


def _gaussian_weights(features: Tensor, row: Tensor, column: Tensor, workers: Workers) -> Tensor:
    """Weight exp(-|x_row - x_column|^2) of each pair, (E,) float32."""
    squared = features.square().sum(1)

    def work(pairs: tuple[Tensor, Tensor]) -> Tensor:
        i, j = pairs
        products = torch.linalg.vecdot(features.index_select(0, i), features.index_select(0, j))
        return torch.exp(2 * products - squared.index_select(0, i) - squared.index_select(0, j))

    size = max(1, _BLOCK_ELEMENTS // 4 // max(features.shape[1], 1))
    return torch.cat(list(workers.map(work, zip(row.split(size), column.split(size), strict=True))))


def _mean_of_neighbors(codes: SparseRows, neighbors: Tensor, workers: Workers) -> SparseRows:
    """Mean code of each row's neighbors (N, k): sums entries with the same (row, column)."""
    count, k = neighbors.shape
    pointer = codes.pointer
    lengths = pointer.diff()

    def work(rows: Tensor) -> tuple[Tensor, Tensor]:
        sources = neighbors.index_select(0, rows).flatten()
        length = lengths.index_select(0, sources)
        owner = torch.repeat_interleave(length)
        entry = concatenated_ranges(pointer.index_select(0, sources), length, owner)
        key = (rows * count).repeat_interleave(k).index_select(0, owner) + codes.column.index_select(0, entry)
        key, order = key.sort(stable=True)
        key, group = torch.unique_consecutive(key, return_inverse=True)
        value = codes.value.index_select(0, entry.index_select(0, order))
        return key, torch.zeros(len(key), device=key.device).index_add_(0, group, value) / k

    blocks = torch.arange(count, device=neighbors.device).split(max(1, _BLOCK_ELEMENTS // 64 // max(k, 1)))
    key, value = (torch.cat(part) for part in zip(*workers.map(work, blocks), strict=True))
    return SparseRows(count, key // max(count, 1), key % max(count, 1), value)


def concatenated_ranges(start: Tensor, length: Tensor, owner: Tensor) -> Tensor:
    """Concatenation of the ranges start[0] .. start[0] + length[0] - 1, start[1] .., with the dtype of `start`.

    `owner` is `torch.repeat_interleave(length)`, which callers need anyway. The result is (sum of length,).
    """
    before = length.cumsum(0) - length
    shift = (start - before).to(start.dtype).index_select(0, owner)
    return shift.add_(torch.arange(len(shift), dtype=start.dtype, device=shift.device))
