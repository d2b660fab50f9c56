"""HDBSCAN on a sparse distance matrix. What the matrix does not store is farther than everything it stores."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

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
