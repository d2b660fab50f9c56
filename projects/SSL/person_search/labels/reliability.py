"""Which clusters to believe: the same-image rule and the self-paced reliability criterion (SpCL, CGPS)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .clustering import number_by_first_row

Labels = NDArray[np.int64]


def outliers_to_singletons(labels: Labels) -> Labels:
    """Gives each row of label -1 a label of its own, above all others. labels: (N,) int64."""
    return _to_singletons(labels, labels < 0)


def keep_nearest_per_image(labels: Labels, features: Tensor, images: NDArray[np.int64]) -> Labels:
    """Same-image rule: persons of one image are different people, so a cluster keeps one member of each image.

    The member that stays has the largest inner product with the cluster's centre, the plain mean of its members'
    features; for unit rows it is the nearest. Among equals the lowest row stays. The others become singletons.
    Centres are those before the rule.

    Args:
        labels: (N,) int64, all >= 0.
        features: (N, d) float32.
        images: (N,) int64, the image of each row, numbers from 0.

    Returns:
        (N,) int64 labels.
    """
    if len(labels) == 0:
        return labels
    group = np.unique(_both(labels, images), return_inverse=True)[1]
    rival = np.flatnonzero(np.bincount(group)[group] > 1)
    if len(rival) == 0:
        return labels
    similarity = _similarity_to_centre(labels, features, rival)
    order = np.lexsort((rival, -similarity, group[rival]))
    rival = rival[order]
    demoted = np.zeros(len(labels), dtype=bool)
    # The first of each group stays.
    demoted[rival[1:]] = group[rival[1:]] == group[rival[:-1]]
    return _to_singletons(labels, demoted)


def _similarity_to_centre(labels: Labels, features: Tensor, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Inner product of some rows (r,) with the mean feature of their clusters, (r,)."""
    clusters, own = np.unique(labels[rows], return_inverse=True)
    members = np.flatnonzero(np.isin(labels, clusters))
    place = torch.from_numpy(np.searchsorted(clusters, labels[members])).to(features.device)
    total = features.new_zeros((len(clusters), features.shape[1]))
    total.index_add_(0, place, features[torch.from_numpy(members).to(features.device)])
    centre = total / torch.bincount(place, minlength=len(clusters))[:, None]
    picked = features[torch.from_numpy(rows).to(features.device)]
    return torch.linalg.vecdot(picked, centre[torch.from_numpy(own).to(features.device)]).cpu().numpy()


def disagreement(labels: Labels, others: Labels) -> NDArray[np.float32]:
    """For each row, 1 - IoU of the clusters that it is in under two labellings (N,), all labels >= 0: (N,) float32.

    Single precision, as in the reference, whose learnt threshold is then met exactly.
    """
    together, size, other_size = (_group_size(x) for x in (_both(labels, others), labels, others))
    return np.float32(1) - together.astype(np.float32) / (size + other_size - together).astype(np.float32)


def keep_reliable(
    labels: Labels, tight: Labels, loose: Labels, threshold: float | None, quantile: float
) -> tuple[Labels, float | None]:
    """Self-paced reliability criterion (Ge et al., SpCL, 2020, section 3.3).

    R_comp and R_indep of a row are the disagreements of its cluster with the tighter and with the looser clustering.
    A row keeps its cluster if the cluster's smallest R_indep is at most the threshold and the row's R_comp is the
    cluster's smallest; else it becomes a singleton.

    Args:
        labels, tight, loose: (N,) int64, all >= 0: the clusterings at the middle, the smallest and the largest eps.
        threshold: largest R_indep of a believed cluster, or None to learn it: the value at `quantile` of the sorted
            R_indep of all clusters of two and more rows.
        quantile: see threshold, a fraction.

    Returns:
        The labels, and the threshold; it stays None as long as there is no cluster to learn it from.
    """
    labels = number_by_first_row(labels)
    compactness, independence = disagreement(labels, tight), disagreement(labels, loose)
    sizes = np.bincount(labels)
    cluster_compactness = np.full(len(sizes), np.inf, dtype=np.float32)
    np.minimum.at(cluster_compactness, labels, compactness)
    cluster_independence = np.full(len(sizes), np.inf, dtype=np.float32)
    np.minimum.at(cluster_independence, labels, independence)
    if threshold is None:
        threshold = _value_at(cluster_independence[sizes > 1], quantile)
    if threshold is None:
        return labels, None
    kept = (cluster_independence[labels] <= np.float32(threshold)) & (compactness <= cluster_compactness[labels])
    return _to_singletons(labels, ~kept), threshold


def _value_at(values: NDArray[np.float32], quantile: float) -> float | None:
    """The value at a fraction of the sorted values; the place is rounded half to even, as in the reference."""
    if len(values) == 0:
        return None
    return float(np.sort(values)[min(len(values) - 1, round(len(values) * quantile))])


def number_labels(labels: Labels) -> Labels:
    """Numbers labels (N,) without gaps: clusters of two and more rows first, each kind in the order of first rows."""
    labels = number_by_first_row(labels)
    sizes = np.bincount(labels)
    number = np.empty(len(sizes), dtype=np.int64)
    number[np.argsort(sizes == 1, kind="stable")] = np.arange(len(sizes))
    return number[labels]


def _group_size(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each element of groups (N,), how many equal it."""
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return counts[inverse]


def _both(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """One number for each pair of numbers >= 0: equal where both are."""
    return first * (second.max(initial=0) + 1) + second


def _to_singletons(labels: Labels, chosen: NDArray[np.bool_]) -> Labels:
    result = labels.copy()
    result[chosen] = labels.max(initial=-1) + 1 + np.arange(int(chosen.sum()))
    return result
