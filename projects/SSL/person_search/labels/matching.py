"""One-to-one matching of persons across images: each person of an image is at most one person of another."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

ROUNDS = 2
"""Rounds of matching between two images: those whose nearest was taken may match once more."""


def keep_one_to_one(distance: sparse.csr_matrix, images: NDArray[np.int64], rounds: int = ROUNDS) -> sparse.csr_matrix:
    """Distances of the pairs that match one to one; all others, those within an image included, are gone.

    Rows i of image u and j of image v match if j is the nearest of v to i, and i the nearest of u to j. What has
    matched leaves both images, and what is left is matched once more in each further round. Among equally near rows the
    lowest counts. Not in the paper.

    Args:
        distance: (N, N) symmetric CSR matrix of float32 that stores its diagonal, for example from `jaccard_distance`;
            what it does not store is too far to match.
        images: (N,) int64, the image of each row, numbers from 0.
        rounds: how often the rows of two images are matched, 1 or more.

    Returns:
        (N, N) symmetric CSR matrix of float32 with the stored diagonal and at most one entry of a row in each image.
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
        # A row together with an image: where the row looks for its match, and where its match looks for it.
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
    # By hand: a matrix from coordinates would add up, or drop, stored zeros.
    order = np.lexsort((column, row))
    pointer = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=count))])
    return sparse.csr_matrix((value[order], column[order], pointer), shape=distance.shape)


def _place(row: NDArray[np.int64], image: NDArray[np.int64], images: NDArray[np.int64]) -> NDArray[np.int64]:
    return row * (int(images.max(initial=0)) + 1) + image
