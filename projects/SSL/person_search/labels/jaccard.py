"""Jaccard distance of k-reciprocal codes as a sparse matrix, computed without an (N, N) array.

Codes are distributions, so the distance of two rows follows from the mass s that they share (the sum over columns of
the smaller value): d = 1 - s / (2 - s). Only pairs that share a column are visited, once each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor
from tqdm import tqdm

from .k_reciprocal import SparseRows, concatenated_ranges, encode
from .neighbors import Scratch, Workers, nearest_neighbors

# Maximum number of stored pairs, which take about 4 GB.
MAX_PAIRS = 100_000_000
# Pairs of entries per block: small enough for a CPU's cache, large enough to keep a GPU busy.
_PAIRS_CPU = 1 << 18
_PAIRS_GPU = 1 << 24
# Elements of the (rows, N) accumulator of a block of rows.
_ACCUMULATOR_CPU = 1 << 22
_ACCUMULATOR_GPU = 1 << 26
# Rows of a folded accumulator, whose maxima are compared first (see `_places_above`).
_FOLD = 16
# Fraction of the needed mass that the first pass may ignore (see `_shared_masses`).
_UNCOUNTED_SHARE = 0.7
# Tolerance for rounding when a partial sum rules a pair out.
_SLACK = 1e-5


def jaccard_distance(
    features: Tensor | NDArray[np.floating],
    k1: int = 30,
    k2: int = 6,
    *,
    max_distance: float = 1.0,
    progress: bool = False,
) -> sparse.csr_matrix:
    """K-reciprocal Jaccard distance (Zhong et al., CVPR 2017, in the variant of SpCL).

    Args:
        features: (N, d) float, tensor on any device or array, usually of unit length.
        k1: number of neighbors of the k-reciprocal encoding, including the row itself.
        k2: number of neighbors of the local query expansion, including the row itself; 1 for none.
        max_distance: maximum distance to compute. Leaving out larger ones saves most of the work.
        progress: whether to show progress bars on stderr.

    Returns:
        (N, N) symmetric CSR matrix, float32, with sorted indices. Distances below 1 and up to `max_distance` are
        stored, including zeros (the diagonal and identical rows); pairs that are not stored are farther apart.

    Raises:
        ValueError: features are not (N, d) or not finite, k1 or k2 is below 1, max_distance is outside (0, 1], or more
            than MAX_PAIRS pairs would be stored.
    """
    features = as_features(features)
    ranks = nearest_neighbors(features, k1, progress)
    return distance_of_codes(codes_of_ranks(features, ranks, k1, k2), max_distance, progress)


def as_features(features: Tensor | NDArray[np.floating]) -> Tensor:
    """Features (N, d) as a detached float32 tensor on their device.

    Raises:
        ValueError: the shape is wrong, or a value is NaN or infinite; the message names the first such row.
    """
    features = torch.as_tensor(features).detach().to(torch.float32)
    if features.dim() != 2:
        raise ValueError(f"features have shape {tuple(features.shape)}, expected (N, d)")
    broken = (~features.isfinite().all(1)).nonzero()[:, 0]
    if len(broken):
        raise ValueError(
            f"{len(broken)} of {len(features)} feature rows have NaN or infinite values, the first is row "
            f"{int(broken[0])}: find out why the network produced them before clustering"
        )
    return features


@torch.no_grad()
def codes_of_ranks(features: Tensor, ranks: Tensor, k1: int, k2: int) -> SparseRows:
    """K-reciprocal codes (see `encode`) of rows with known neighbors: ranks (N, min(k1, N)), the row itself first."""
    if k2 < 1:
        raise ValueError(f"k2 is {k2}, expected 1 or more: local query expansion includes the row itself")
    with Workers(features.device) as workers:
        return encode(features, ranks, k1, k2, workers)


@torch.no_grad()
def distance_of_codes(codes: SparseRows, max_distance: float = 1.0, progress: bool = False) -> sparse.csr_matrix:
    """`jaccard_distance` of rows with known codes."""
    if not 0 < max_distance <= 1:
        raise ValueError(f"max_distance is {max_distance}, expected a Jaccard distance in (0, 1]")
    # d <= max_distance <=> shared mass >= needed
    needed = 2 * (1 - max_distance) / (2 - max_distance)
    with Workers(codes.row.device) as workers:
        first, second, mass = _shared_masses(codes, needed, workers, progress)
    matrix = _symmetric(codes.count, first, second, mass)
    matrix.data = np.maximum(1 - matrix.data / (2 - matrix.data), 0)
    matrix.setdiag(0)
    kept = (matrix.data <= np.float32(max_distance)) & (matrix.data < 1)
    return matrix if kept.all() else _keep(matrix, kept)


@torch.no_grad()
def distances_of_pairs(codes: SparseRows, first: Tensor, second: Tensor) -> Tensor:
    """Jaccard distances (P,) float32 of given pairs of rows, (P,) int64 each."""
    order = first.argsort(stable=True)
    with Workers(codes.row.device) as workers:
        mass = torch.empty(len(first), device=codes.row.device)
        mass[order] = _masses_of_pairs(codes, first[order], codes, second[order], workers)
    return (1 - mass / (2 - mass)).clamp(min=0)


def _symmetric(count: int, first: Tensor, second: Tensor, mass: Tensor) -> sparse.csr_matrix:
    """CSR matrix of the masses of ordered pairs first < second, mirrored, with 1 on the diagonal."""
    pointer = np.zeros(count + 1, dtype=np.int32)
    np.cumsum(np.bincount(first.cpu().numpy(), minlength=count), out=pointer[1:])
    upper = sparse.csr_matrix((mass.cpu().numpy(), second.cpu().numpy(), pointer), shape=(count, count))
    matrix = upper + upper.T.tocsr() + sparse.identity(count, dtype=np.float32, format="csr")
    matrix.sort_indices()
    return matrix


def _keep(matrix: sparse.csr_matrix, kept: NDArray[np.bool_]) -> sparse.csr_matrix:
    """Selected entries of a CSR matrix, explicit zeros included."""
    before = np.concatenate([[0], np.cumsum(kept)]).astype(matrix.indptr.dtype)
    arrays = (matrix.data[kept], matrix.indices[kept], before[matrix.indptr])
    return sparse.csr_matrix(arrays, shape=matrix.shape)


def _shared_masses(codes: SparseRows, needed: float, workers: Workers, progress: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Ordered pairs first < second (int32) that share at least about `needed` mass, with their mass, above 0.

    A prefix filter avoids most of the work. Columns are ordered from rarest to most common, and each row's last entries
    are set aside as long as they have less than a part `uncounted` of its mass. All columns shared by two rows that are
    not in both prefixes lie in the suffix of the row that was cut first, so a pair whose prefixes share less than
    needed - uncounted cannot reach `needed`. The most common columns, shared by nearly every pair, are thus never
    visited; for the few remaining pairs, the suffix's share is added.
    """
    codes = _rarest_columns_first(codes, workers)
    uncounted = _UNCOUNTED_SHARE * needed
    prefix, suffixes = _cut_suffixes(codes, uncounted)
    parts, pairs = [(codes.row[:0].int(), codes.row[:0].int(), codes.value[:0])], 0
    for part in _candidates(prefix, max(needed - uncounted - _SLACK, 0), workers, progress):
        pairs += len(part[0])
        if pairs > MAX_PAIRS:
            raise ValueError(
                f"more than {MAX_PAIRS} pairs of {codes.count} rows would have to be stored: "
                "most rows are identical (the features have collapsed), or max_distance is too large for so many rows"
            )
        parts.append(part)
    first, second, mass = (torch.cat(part) for part in zip(*parts, strict=True))
    if uncounted > 0:
        mass += _suffix_masses(codes, suffixes, first, second, workers)
    return first, second, mass


def _rarest_columns_first(codes: SparseRows, workers: Workers) -> SparseRows:
    """Codes with columns renumbered by their number of entries, fewest first."""
    count, device, pointer = codes.count, codes.row.device, codes.pointer.cpu()
    if count == 0:
        return codes
    place = torch.empty(count, dtype=torch.int64, device=device)
    frequency = torch.bincount(codes.column, minlength=count)
    place[frequency.argsort(stable=True)] = torch.arange(count, device=device)

    size = min(math.ceil(count / workers.count), torch.iinfo(torch.int32).max // count)

    def work(first: int) -> tuple[Tensor, Tensor]:
        entries = slice(int(pointer[first]), int(pointer[min(first + size, count)]))
        start = (codes.row[entries] - first) * count
        # Keys of few rows fit into 32 bits, which halves the time of the sort.
        keys, order = (start + place.index_select(0, codes.column[entries])).int().sort()
        return keys - start, codes.value[entries].index_select(0, order)

    column, value = (torch.cat(part) for part in zip(*workers.map(work, range(0, count, size)), strict=True))
    return SparseRows(count, codes.row, column, value)


def _cut_suffixes(codes: SparseRows, mass: float) -> tuple[SparseRows, SparseRows]:
    """Codes without, and of, the last entries of each row that together have less than `mass`."""
    # Sums run over all rows and need double precision.
    before = codes.value.cumsum(0, dtype=torch.float64)
    before = torch.cat([before.new_zeros(1), before])
    suffix = before[codes.pointer[1:]].index_select(0, codes.row) - before[:-1]
    halves = ((suffix >= mass).nonzero()[:, 0], (suffix < mass).nonzero()[:, 0])
    parts = (codes.row, codes.column, codes.value)
    kept, cut = (SparseRows(codes.count, *(part.index_select(0, half) for part in parts)) for half in halves)
    return kept, cut


class _InvertedIndex:
    """Entries of a sparse matrix by column. Partners of an entry are those after it, with larger rows."""

    def __init__(self, codes: SparseRows):
        # 32-bit integers halve the time of the sort and the memory traffic of the innermost loop.
        by_column = codes.column.int().argsort(stable=True)
        place = torch.empty(len(by_column), dtype=torch.int32, device=by_column.device)
        place[by_column] = torch.arange(len(by_column), dtype=torch.int32, device=by_column.device)
        ends = torch.bincount(codes.column, minlength=codes.count).cumsum(0).int()
        self.rows = codes.row.index_select(0, by_column).int()
        self.values = codes.value.index_select(0, by_column)
        self.first = place + 1
        self.length = ends.index_select(0, codes.column) - self.first


def _candidates(
    codes: SparseRows, least: float, workers: Workers, progress: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Blocks (first, second, mass) of the pairs first < second with a shared mass above `least`."""
    count, device = codes.count, codes.row.device
    index = _InvertedIndex(codes)
    pointer = codes.pointer.cpu()
    done = torch.cat([pointer.new_zeros(1), index.length.cpu().cumsum(0)])[pointer]
    scratch = Scratch()

    def work(rows: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        start, stop = rows
        entries = slice(int(pointer[start]), int(pointer[stop]))
        total = int(done[stop] - done[start])
        length = index.length[entries]
        entry = torch.repeat_interleave(length, output_size=total)
        partner = concatenated_ranges(index.first[entries], length, entry)
        # Partners start at `start`, so the accumulator needs no columns before.
        width = count - start
        target = ((codes.row[entries] - start) * width - start).index_select(0, entry)
        target += index.rows.index_select(0, partner)
        own = codes.value[entries].index_select(0, entry)
        mass = scratch.zeros(math.ceil((stop - start) * width / _FOLD) * _FOLD, device)
        mass.scatter_add_(0, target, torch.minimum(index.values.index_select(0, partner), own))
        found = _places_above(mass, least)
        return (found // width + start).int(), (found % width + start).int(), mass[found]

    blocks = list(_blocks(done, count, device))
    with tqdm(total=count, desc="Jaccard distance", unit="row", disable=not progress) as bar:
        for (start, stop), part in zip(blocks, workers.map(work, blocks), strict=True):
            yield part
            bar.update(stop - start)


def _places_above(values: Tensor, least: float) -> Tensor:
    """Ascending indices (int64) of values above `least` in a flat tensor whose length is a multiple of _FOLD.

    Such values are rare, so comparing the maxima of the folded tensor first costs a fraction of comparing all.
    """
    folded = values.view(_FOLD, -1)
    near = (folded.amax(0) > least).nonzero()[:, 0]
    fold, place = (folded.index_select(1, near) > least).nonzero(as_tuple=True)
    return fold * folded.shape[1] + near[place]


def _blocks(done: Tensor, width: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """Ranges (start, stop) of rows with bounded work; done (rows + 1,) is the work before each row, width the size of a
    row in an accumulator."""
    most, elements = (_PAIRS_CPU, _ACCUMULATOR_CPU) if device.type == "cpu" else (_PAIRS_GPU, _ACCUMULATOR_GPU)
    rows = max(1, elements // max(width, 1))
    start, count = 0, len(done) - 1
    while start < count:
        stop = int(torch.searchsorted(done, done[start] + most, right=True)) - 1
        stop = min(max(stop, start + 1), start + rows, count)
        yield start, stop
        start = stop


def _suffix_masses(codes: SparseRows, suffixes: SparseRows, first: Tensor, second: Tensor, workers: Workers) -> Tensor:
    """Mass (P,) float32 that each pair shares beyond the prefixes of both rows: that of the suffix of the row that was
    cut first with the whole other row."""
    start = suffixes.pointer
    cut = torch.full((codes.count,), codes.count, device=codes.row.device)
    has_suffix = start.diff() > 0
    cut[has_suffix] = suffixes.column[start[:-1][has_suffix]]
    cut_first = cut.index_select(0, first) <= cut.index_select(0, second)
    whole = torch.where(cut_first, second, first)
    order = whole.argsort(stable=True)
    masses = torch.empty(len(first), device=codes.row.device)
    whole, cut_rows = whole[order], torch.where(cut_first, first, second)[order]
    masses[order] = _masses_of_pairs(codes, whole, suffixes, cut_rows, workers)
    return masses


def _masses_of_pairs(codes: SparseRows, first: Tensor, others: SparseRows, second: Tensor, workers: Workers) -> Tensor:
    """Mass (P,) float32 that row first[i] of `codes` shares with row second[i] of `others`; `first` must ascend."""
    count, device = codes.count, codes.row.device
    pointer, column = codes.pointer, codes.column.int()
    other_start, other_column = others.pointer, others.column.int()
    length = other_start.diff().index_select(0, second)
    ends = torch.searchsorted(first, torch.arange(count + 1, dtype=first.dtype, device=device)).cpu()
    work_before = torch.cat([ends.new_zeros(1), length.cpu().cumsum(0)])[ends]
    scratch = Scratch()

    def work(rows: tuple[int, int]) -> Tensor:
        start, stop = rows
        pairs = slice(int(ends[start]), int(ends[stop]))
        entries = slice(int(pointer[start]), int(pointer[stop]))
        total = int(work_before[stop] - work_before[start])
        dense = scratch.zeros((stop - start) * count, device)
        dense[(codes.row[entries] - start) * count + column[entries]] = codes.value[entries]
        pair = torch.repeat_interleave(length[pairs], output_size=total)
        entry = concatenated_ranges(other_start.index_select(0, second[pairs]), length[pairs], pair)
        place = ((first[pairs].long() - start) * count).index_select(0, pair) + other_column.index_select(0, entry)
        shared = torch.minimum(dense.index_select(0, place), others.value.index_select(0, entry))
        return torch.zeros(pairs.stop - pairs.start, device=device).index_add_(0, pair, shared)

    return torch.cat(list(workers.map(work, _blocks(work_before, count, device))))
