"""Dynamic multi-labels: which memory bank rows show the same person as a row of the batch (paper Eq. 7-10)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class DynamicThreshold:
    """Similarity from which a row counts as positive, t(e) = initial + alpha * exp(beta * e) (Eq. 9).

    Attributes:
        initial: t_s, the value that the threshold falls to (for beta < 0).
        alpha: what is added to it at epoch 0. 0 keeps the threshold fixed.
        beta: rate of decay per epoch, negative for a falling threshold.
    """

    initial: float
    alpha: float
    beta: float

    def at(self, epoch: float) -> float:
        """Threshold of an epoch, counted from 0; a cosine similarity."""
        return self.initial + self.alpha * math.exp(self.beta * epoch)


@torch.no_grad()
def predict_multi_labels(similarity: Tensor, image_ids: Tensor, rows: Tensor, threshold: float) -> Tensor:
    """Predicts the positives of bank rows (section 2, "Dynamic multi-label learning").

    Every row at least as similar as the threshold is a candidate. Persons of one image are different people, so of
    the candidates in each image only the most similar stays (of equally similar ones the lowest row). The row itself
    is always positive, and so no other person of its image is.

    Args:
        similarity: (q, N) float, similarity of the q rows to all bank rows. It is only read.
        image_ids: (N,) int64, the image of each bank row.
        rows: (q,) int64, the bank rows that the similarities belong to.
        threshold: t(e), see `DynamicThreshold`.

    Returns:
        (q, N) bool on the device of `similarity`, True for positives; it carries no gradient. Besides it and the
        boolean mask of the candidates, memory grows with the number of candidates only.

    Raises:
        ValueError: shapes that do not fit each other, or a row outside 0..N-1.
    """
    _check_shapes(similarity, image_ids, rows)
    device = similarity.device
    image_ids, rows = image_ids.to(device), rows.to(device)
    query, column = (similarity >= threshold).nonzero(as_tuple=True)
    # Numbers instead of masks: on a GPU each use of a mask waits for the count of its elements.
    image = image_ids[column]
    elsewhere = (image != image_ids[rows][query]).nonzero()[:, 0]
    query, column, image = query[elsewhere], column[elsewhere], image[elsewhere]
    # Stable sorts from the least to the most important key: similarity falling, image, query. Candidates come from
    # nonzero() by rising column, so among equal similarities the lowest row stays in front.
    order = torch.argsort(similarity[query, column], descending=True, stable=True)
    order = order[torch.argsort(image[order], stable=True)]
    order = order[torch.argsort(query[order], stable=True)]
    query, column, image = query[order], column[order], image[order]
    first = torch.ones_like(query, dtype=torch.bool)
    first[1:] = (query[1:] != query[:-1]) | (image[1:] != image[:-1])
    labels = torch.zeros(similarity.shape, dtype=torch.bool, device=device)
    first = first.nonzero()[:, 0]
    labels[query[first], column[first]] = True
    labels[torch.arange(len(rows), device=device), rows] = True
    return labels


def _check_shapes(similarity: Tensor, image_ids: Tensor, rows: Tensor) -> None:
    if similarity.dim() != 2:
        raise ValueError(f"similarity has shape {tuple(similarity.shape)}, expected (q, N)")
    expected = {"rows": (rows, similarity.shape[0]), "image_ids": (image_ids, similarity.shape[1])}
    for name, (tensor, length) in expected.items():
        if tensor.shape != (length,):
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, expected ({length},) for a similarity of shape "
                f"{tuple(similarity.shape)}"
            )
    if len(rows):
        least, most = torch.stack(rows.aminmax()).tolist()
        if not 0 <= least <= most < similarity.shape[1]:
            raise ValueError(f"rows lie in {least}..{most}, expected 0..{similarity.shape[1] - 1}")
