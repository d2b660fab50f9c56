"""Tracklets as evidence for cluster labels: what a tracker has joined shows one person."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .clustering import number_by_first_row

Labels = NDArray[np.int64]


def keep_tracklets_whole(labels: Labels, tracklets: NDArray[np.int64], images: NDArray[np.int64]) -> Labels:
    """Clusters of whole tracklets: boxes of one tracklet share a label, and boxes of one image never do.

    A tracklet goes to the cluster that most of its boxes are in, or becomes one of its own where none of them is in
    any. A cluster takes the tracklets, and the boxes without one, by falling number of boxes that were in it; what
    shares an image with something that it has taken becomes a cluster of its own. Ties go to the first row. Not in the
    paper.

    Args:
        labels: (N,) int64, all >= 0; a label of a single row is no cluster.
        tracklets: (N,) int64, the tracklet of each row, negative for none. Of the rows of one tracklet in one image,
            which a tracker does not give, the first counts.
        images: (N,) int64, the image of each row.

    Returns:
        (N,) int64 labels.
    """
    if not len(labels):
        return labels
    unit = _units(tracklets, images)
    labels = number_by_first_row(labels)
    wanted, votes = _most_frequent(unit, labels, np.bincount(labels)[labels] > 1)
    rows_of = np.split(np.argsort(unit, kind="stable"), np.cumsum(np.bincount(unit))[:-1])
    result = np.empty_like(labels)
    taken: dict[int, set[int]] = {}
    own = len(labels)  # above every label
    for number in np.argsort(-votes, kind="stable").tolist():
        rows, cluster = rows_of[number], int(wanted[number])
        seen = set(images[rows].tolist())
        if cluster < 0 or not taken.setdefault(cluster, set()).isdisjoint(seen):
            cluster, own = own, own + 1
        else:
            taken[cluster] |= seen
        result[rows] = cluster
    return result


def _units(tracklets: NDArray[np.int64], images: NDArray[np.int64]) -> NDArray[np.int64]:
    """Numbers (N,) of what stays together, by first rows: a tracklet, or a box without one."""
    alone = tracklets < 0
    order = np.lexsort((images, tracklets))
    again = (np.diff(tracklets[order]) == 0) & (np.diff(images[order]) == 0)
    alone[order[1:][again]] = True
    loose = tracklets.max(initial=-1) + 1 + np.arange(len(tracklets))
    return number_by_first_row(np.where(alone, loose, tracklets))


def _most_frequent(
    unit: NDArray[np.int64], labels: Labels, counts: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each unit the label that most of its rows that count have (-1: none does), and how many have it."""
    number = int(unit.max()) + 1
    wanted, votes = np.full(number, -1, dtype=np.int64), np.zeros(number, dtype=np.int64)
    pairs, found = np.unique(np.stack([unit[counts], labels[counts]]), axis=1, return_counts=True)
    # The most frequent last, of equals the lowest label: the last write stays.
    order = np.lexsort((-pairs[1], found))
    wanted[pairs[0][order]], votes[pairs[0][order]] = pairs[1][order], found[order]
    return wanted, votes
