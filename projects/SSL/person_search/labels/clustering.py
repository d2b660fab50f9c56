"""DBSCAN on a sparse distance matrix. What the matrix does not store is farther than everything it stores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph


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
