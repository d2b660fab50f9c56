"""Clustering of a sparse distance matrix (DBSCAN, HDBSCAN), and camera-centred features for it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph
from torch import Tensor

# Weight, in rows, of the mean over all rows in a camera's mean: a camera seen rarely is corrected little.
_PRIOR_ROWS = 16


def centre_cameras(features: Tensor, cameras: NDArray) -> Tensor:
    """Moves the mean feature of every camera to the mean of all, so that the camera no longer drives the ranking.

    Light, colour and viewpoint of a camera shift all its features alike. Rows of one camera are thereby nearer to each
    other than rows of one person in two cameras, and neighbour lists fill with the own camera. Subtracting the camera's
    offset removes exactly that shared part; the rows are scaled to unit length again.

    Args:
        features: (N, d) float32 of unit length.
        cameras: (N,) integers, the camera of each row; rows of a negative number, camera unknown, are not moved.

    Returns:
        (N, d) float32 of unit length (a row that cancels to zero is returned as it was).
    """
    known = cameras >= 0
    if not known.any():
        return features
    index = torch.from_numpy(np.unique(cameras, return_inverse=True)[1].reshape(-1)).to(features.device)
    mask = torch.from_numpy(known).to(features.device)
    overall = features[mask].mean(0)
    total = features.new_zeros((int(index.max()) + 1, features.shape[1])).index_add_(0, index, features)
    rows = torch.bincount(index)[:, None]
    offset = (total - rows * overall) / (rows + _PRIOR_ROWS)
    moved = features - offset[index]
    norm = torch.linalg.vector_norm(moved, dim=1, keepdim=True)
    return torch.where(mask[:, None] & (norm > 1e-6), moved / norm.clamp(min=1e-6), features)


def dbscan(distance: sparse.csr_matrix, eps: float, min_samples: int) -> NDArray[np.int64]:
    """DBSCAN (Ester et al., 1996), with the partition and the numbering that scikit-learn's gives.

    The clusters are the connected components of the core rows, numbered by their first core row. A border row that
    touches several clusters goes to the one of the lowest number.

    Args:
        distance: (N, N) symmetric CSR matrix of float32 that stores its diagonal, for example from `jaccard_distance`.
        eps: largest distance between neighbours.
        min_samples: neighbours, the row itself counted, that make a core row.

    Returns:
        (N,) int64 labels 0, 1, ..; -1 for rows in no cluster.
    """
    count = distance.shape[0]
    near = distance.data <= np.float32(eps)
    row = np.repeat(np.arange(count, dtype=np.int32), np.diff(distance.indptr))[near]
    column = distance.indices[near]
    core = np.bincount(row, minlength=count) >= min_samples
    inner = core[row] & core[column]
    edges = (np.ones(int(inner.sum()), dtype=np.bool_), (row[inner], column[inner]))
    component = csgraph.connected_components(sparse.csr_matrix(edges, shape=(count, count)), directed=False)[1]
    labels = np.full(count, -1, dtype=np.int64)
    labels[core] = number_by_first_row(component[core])
    border = core[column] & ~core[row]
    # Clusters touched by border rows, the highest number first: the last write, of the lowest number, stays.
    touched = labels[column[border]]
    order = np.argsort(-touched, kind="stable")
    labels[row[border][order]] = touched[order]
    return labels


def number_by_first_row(labels: NDArray) -> NDArray[np.int64]:
    """Renumbers labels (N,) as 0, 1, .. in the order in which they first occur."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    number = np.empty(len(first), dtype=np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    return number[inverse]


# scikit-learn's HDBSCAN loses edges of length zero, so identical rows are set this far apart.
_LEAST_DISTANCE = 1e-6


def hdbscan(distance: sparse.csr_matrix, eps: float, min_samples: int) -> NDArray[np.int64]:
    """HDBSCAN (Campello et al., 2013) of the rows that are joined at distances up to eps.

    Rows farther apart than eps are never joined, so each connected group of core rows is a hierarchy of its own, in
    which the clusters of the largest excess of mass are chosen: eps bounds the clusters, and unlike DBSCAN's they may
    be denser parts of such a group. Rows that are not core rows at eps are in no cluster.

    Args:
        distance: (N, N) symmetric CSR matrix of distances below 1 that stores its diagonal.
        eps: largest distance at which rows are joined, below 1.
        min_samples: neighbours (the row itself counted) that make a core row, and least size of a cluster.

    Returns:
        (N,) int64 labels 0, 1, ..; -1 for rows in no cluster.
    """
    from sklearn.cluster import HDBSCAN  # slow to import, and only this option needs it

    count, least = distance.shape[0], max(min_samples, 2)
    labels = np.full(count, -1, dtype=np.int64)
    reach = _mutual_reachability(distance, eps, min_samples)
    component = csgraph.connected_components(reach, directed=False)[1]
    rows = np.flatnonzero(np.bincount(component, minlength=count)[component] >= least)
    if len(rows) == 0:
        return labels
    # min_samples=1: the matrix holds mutual reachability already.
    model = HDBSCAN(min_cluster_size=least, min_samples=1, metric="precomputed", copy=False)
    found = model.fit(_connect(reach[rows][:, rows], least)).labels_[: len(rows)]
    # The phantom group (see _connect) took one of the numbers.
    labels[rows[found >= 0]] = np.unique(found[found >= 0], return_inverse=True)[1]
    return labels


def _mutual_reachability(distance: sparse.csr_matrix, eps: float, min_samples: int) -> sparse.csr_matrix:
    """max(core distance of i, core distance of j, d_ij) for the pairs where that is at most eps."""
    count = distance.shape[0]
    row = np.repeat(np.arange(count), np.diff(distance.indptr))
    ordered = distance.data[np.lexsort((distance.data, row))]
    core = np.full(count, np.inf)
    enough = np.diff(distance.indptr) >= min_samples
    core[enough] = ordered[distance.indptr[:-1][enough] + min_samples - 1]
    reach = np.maximum(np.maximum(core[row], core[distance.indices]), distance.data)
    near = reach <= np.float32(eps)
    reach = np.maximum(reach[near], _LEAST_DISTANCE)
    return sparse.csr_matrix((reach, (row[near], distance.indices[near])), shape=distance.shape)


def _connect(reach: sparse.csr_matrix, phantoms: int) -> sparse.csr_matrix:
    """Appends a group of phantom rows and joins everything at distance 1 into one connected graph.

    scikit-learn refuses graphs of several parts, and never reports the root of the hierarchy as a cluster: with the
    phantom group beside it, a single real group is not the root.
    """
    group = sparse.csr_matrix(np.full((phantoms, phantoms), _LEAST_DISTANCE))
    graph = sparse.block_diag([reach, group], format="csr")
    total = graph.shape[0]
    chain = sparse.diags([np.ones(total - 1), np.ones(total - 1)], [1, -1], format="csr")
    return (graph + (chain - chain.multiply(graph > 0))).tocsr()
