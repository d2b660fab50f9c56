"""Clustering of sparse distance matrices (DBSCAN, HDBSCAN), camera-centred features and one-to-one matching."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph
from torch import Tensor

# Weight, in rows, of the overall mean in a camera's mean, so cameras with few rows are corrected less.
_PRIOR_ROWS = 16


def centre_cameras(features: Tensor, cameras: NDArray[np.int64]) -> Tensor:
    """Features with the mean of every camera shifted to the overall mean.

    Light, color and viewpoint of a camera shift all of its features alike. Rows of one camera are therefore closer to
    each other than rows of one person in two cameras, and neighbor lists fill up with rows of the same camera.
    Subtracting the camera's offset removes this common part; rows are then scaled back to unit length.

    Args:
        features: (N, d) float32 of unit length.
        cameras: (N,) integers, camera of each row; rows with a negative number (unknown) are not shifted.

    Returns:
        (N, d) float32 of unit length; a row that would become zero is returned unchanged.
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
    """DBSCAN (Ester et al., 1996), with the same partition and numbering as scikit-learn's.

    Clusters are the connected components of the core rows, numbered by their first core row. A border row next to
    several clusters goes to the one with the lowest number.

    Args:
        distance: (N, N) symmetric CSR matrix, float32, with stored diagonal, for example from `jaccard_distance`.
        eps: maximum distance between neighbors.
        min_samples: minimum number of neighbors, including the row itself, of a core row.

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
    # Clusters next to border rows, in descending order, so that the lowest number is written last.
    touched = labels[column[border]]
    order = np.argsort(-touched, kind="stable")
    labels[row[border][order]] = touched[order]
    return labels


def number_by_first_row(labels: NDArray[np.generic]) -> NDArray[np.int64]:
    """Labels (N,) renumbered 0, 1, .. in order of first occurrence."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    number = np.empty(len(first), dtype=np.int64)
    number[np.argsort(first)] = np.arange(len(first))
    return number[inverse]


# Minimum distance of identical rows, since scikit-learn's HDBSCAN loses edges of length zero.
_LEAST_DISTANCE = 1e-6


def hdbscan(distance: sparse.csr_matrix, eps: float, min_samples: int) -> NDArray[np.int64]:
    """HDBSCAN (Campello et al., 2013) of rows connected at distances up to eps.

    Rows farther apart than eps are never connected. Every connected component of core rows has its own hierarchy, of
    which the clusters with the largest excess of mass are selected: eps limits the clusters, which unlike DBSCAN's may
    be denser parts of a component. Rows that are not core rows at eps are in no cluster.

    Args:
        distance: (N, N) symmetric CSR matrix of distances below 1, with stored diagonal.
        eps: maximum distance between connected rows, below 1.
        min_samples: minimum number of neighbors, including the row itself, of a core row, and minimum cluster size.

    Returns:
        (N,) int64 labels 0, 1, ..; -1 for rows in no cluster.
    """
    from sklearn.cluster import HDBSCAN  # slow to import, and used by this option only

    count, least = distance.shape[0], max(min_samples, 2)
    labels = np.full(count, -1, dtype=np.int64)
    reach = _mutual_reachability(distance, eps, min_samples)
    component = csgraph.connected_components(reach, directed=False)[1]
    rows = np.flatnonzero(np.bincount(component, minlength=count)[component] >= least)
    if len(rows) == 0:
        return labels
    # min_samples=1, since the matrix already has mutual reachability distances.
    model = HDBSCAN(min_cluster_size=least, min_samples=1, metric="precomputed", copy=False)
    found = model.fit(_connect(reach[rows][:, rows], least)).labels_[: len(rows)]
    # One of the numbers belongs to the phantom group (see _connect).
    labels[rows[found >= 0]] = np.unique(found[found >= 0], return_inverse=True)[1]
    return labels


def _mutual_reachability(distance: sparse.csr_matrix, eps: float, min_samples: int) -> sparse.csr_matrix:
    """Mutual reachability, max(core distance of i, core distance of j, d_ij), of pairs where it is at most eps."""
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
    """Connected graph: appends a group of phantom rows, and connects everything at distance 1.

    scikit-learn requires a connected graph and never reports the root of the hierarchy as a cluster; thanks to the
    phantom group, a single real group is not the root.
    """
    group = sparse.csr_matrix(np.full((phantoms, phantoms), _LEAST_DISTANCE))
    graph = sparse.block_diag([reach, group], format="csr")
    total = graph.shape[0]
    chain = sparse.diags([np.ones(total - 1), np.ones(total - 1)], [1, -1], format="csr")
    return (graph + (chain - chain.multiply(graph > 0))).tocsr()


ROUNDS = 2
"""Number of matching rounds between two images; later rounds match persons whose nearest one was taken."""


def keep_one_to_one(distance: sparse.csr_matrix, images: NDArray[np.int64], rounds: int = ROUNDS) -> sparse.csr_matrix:
    """Distances of pairs that match one to one; all others, including pairs within an image, are removed.

    Rows i of image u and j of image v match if j is the nearest row of v to i, and i the nearest row of u to j. Matched
    rows are removed from both images, and the rest is matched again in each further round. Among equally near rows, the
    lowest counts. Not in the paper.

    Args:
        distance: (N, N) symmetric CSR matrix, float32, with stored diagonal, for example from `jaccard_distance`;
            pairs that are not stored are too far apart to match.
        images: (N,) int64, image of each row, from 0.
        rounds: number of rounds, 1 or more.

    Returns:
        (N, N) symmetric CSR matrix, float32, with stored diagonal and at most one entry per row and image.
    """
    count = distance.shape[0]
    row = np.repeat(np.arange(count, dtype=np.int64), np.diff(distance.indptr))
    column, value = distance.indices.astype(np.int64), distance.data
    own = row == column
    parts = [(row[own], column[own], value[own])]
    elsewhere = images[row] != images[column]
    row, column, value = row[elsewhere], column[elsewhere], value[elsewhere]
    order = np.lexsort((column, value, images[column], row))
    row, column, value = row[order], column[order], value[order]
    for _ in range(rounds):
        # Keys (row, image): where a row looks for its match, and where the match looks for it.
        looks, found = _place(row, images[column], images), _place(column, images[row], images)
        nearest = np.ones(len(row), dtype=np.bool_)
        nearest[1:] = looks[1:] != looks[:-1]
        matched = nearest & np.isin(column * count + row, (row * count + column)[nearest])
        if not matched.any():
            break
        parts.append((row[matched], column[matched], value[matched]))
        left = ~(np.isin(looks, looks[matched]) | np.isin(found, looks[matched]))
        row, column, value = row[left], column[left], value[left]
    row, column, value = (np.concatenate(part) for part in zip(*parts, strict=True))
    # Built by hand, since conversion from coordinates would sum duplicates or drop stored zeros.
    order = np.lexsort((column, row))
    pointer = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=count))])
    return sparse.csr_matrix((value[order], column[order], pointer), shape=distance.shape)


def _place(row: NDArray[np.int64], image: NDArray[np.int64], images: NDArray[np.int64]) -> NDArray[np.int64]:
    return row * (int(images.max(initial=0)) + 1) + image
