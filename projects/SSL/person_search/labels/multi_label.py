"""Dynamic multi-labels: bank rows that show the same person as a row of the batch (paper Eq. 7-10)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class DynamicThreshold:
    """Multi-label threshold, t(e) = initial + alpha * exp(beta * e) (Eq. 9).

    Attributes:
        initial: t_s, limit of the threshold (for beta < 0).
        alpha: amount added at epoch 0; 0 for a fixed threshold.
        beta: decay rate per epoch, negative for a falling threshold.
    """

    initial: float
    alpha: float
    beta: float

    def at(self, epoch: float) -> float:
        """Threshold of an epoch, counted from 0: a cosine similarity, or a quantile if calibrated."""
        return self.initial + self.alpha * math.exp(self.beta * epoch)


def same_image_pairs(image_index: Tensor, most: int = 200_000) -> tuple[Tensor, Tensor]:
    """Pairs of rows of one image: certainly different persons, that is, negatives known without identities.

    Args:
        image_index: (N,) int64, image of each row.
        most: maximum number of pairs; if there are more, an evenly spaced subset is taken.

    Returns:
        both rows of each pair, (pairs,) int64 each; empty if no image shows two persons. Memory grows with N and with
        the number of pairs returned.
    """
    device = image_index.device
    order = torch.argsort(image_index, stable=True)
    place = torch.arange(len(order), device=device)
    counts = torch.unique_consecutive(image_index[order], return_counts=True)[1]
    # Each row is paired with the following rows of its image.
    behind = torch.repeat_interleave(counts.cumsum(0), counts) - place - 1
    ends = behind.cumsum(0)
    total = int(ends[-1]) if len(ends) else 0
    pair = torch.arange(total, device=device)
    if total > most:
        pair = (torch.arange(most, device=device, dtype=torch.float64) * (total / most)).long()
    first = torch.searchsorted(ends, pair, right=True)
    return order[first], order[first + 1 + pair - (ends[first] - behind[first])]


@torch.no_grad()
def same_image_similarities(features: Tensor, image_index: Tensor, most: int = 200_000) -> Tensor:
    """Similarities between persons of one image, see `same_image_pairs`.

    Args:
        features: (N, d) unit rows; zero rows (persons never seen) are ignored.
        image_index: (N,) int64, image of each row.
        most: maximum number of pairs.

    Returns:
        (pairs,) float.
    """
    seen = features.any(dim=1).nonzero()[:, 0]
    first, second = same_image_pairs(image_index.to(features.device)[seen], most)
    parts = [
        (features[seen[a]] * features[seen[b]]).sum(dim=1)
        for a, b in zip(first.split(4096), second.split(4096), strict=True)
    ]
    return torch.cat(parts) if parts else features.new_zeros(0)


def calibrated_threshold(features: Tensor, image_index: Tensor, quantile: float) -> float | None:
    """Quantile of the similarities between persons of one image (see `same_image_similarities`).

    The meaning of a similarity differs between networks and changes during training. That of a quantile of known
    negatives does not.

    Returns:
        The threshold, a cosine similarity; None if no image shows two persons.
    """
    similarities = same_image_similarities(features, image_index)
    if not len(similarities):
        return None
    rank = min(int(quantile * len(similarities)), len(similarities) - 1)
    return float(similarities.sort().values[rank])


@torch.no_grad()
def predict_multi_labels(similarity: Tensor, image_index: Tensor, instance_index: Tensor, threshold: float) -> Tensor:
    """Multi-labels of bank rows (section 2, "Dynamic multi-label learning").

    Every row at least as similar as the threshold is a candidate. Persons of one image are different, so only the most
    similar candidate of each image is kept (the lowest row of equally similar ones). A row itself is always positive,
    which excludes all other persons of its image.

    Args:
        similarity: (q, N) float, similarity of q rows to all bank rows. Not modified.
        image_index: (N,) int64, image of each bank row.
        instance_index: (q,) int64, bank rows of the similarities.
        threshold: t(e), see `DynamicThreshold`.

    Returns:
        (q, N) bool on the device of `similarity`, True for positives, without gradient. Apart from this and the mask of
        the candidates, memory grows with the number of candidates only.

    Raises:
        ValueError: shapes do not match, or a row is outside 0..N-1.
    """
    _check_shapes(similarity, image_index, instance_index)
    device = similarity.device
    image_index, instance_index = image_index.to(device), instance_index.to(device)
    query, column = (similarity >= threshold).nonzero(as_tuple=True)
    # Indices instead of masks: on a GPU, every use of a mask synchronizes to count its elements.
    image = image_index[column]
    elsewhere = (image != image_index[instance_index][query]).nonzero()[:, 0]
    query, column, image = query[elsewhere], column[elsewhere], image[elsewhere]
    # Stable sorts from the least to the most significant key: descending similarity, image, query. nonzero() returns
    # candidates by ascending column, so the lowest row comes first among equal similarities.
    order = torch.argsort(similarity[query, column], descending=True, stable=True)
    order = order[torch.argsort(image[order], stable=True)]
    order = order[torch.argsort(query[order], stable=True)]
    query, column, image = query[order], column[order], image[order]
    first = torch.ones_like(query, dtype=torch.bool)
    first[1:] = (query[1:] != query[:-1]) | (image[1:] != image[:-1])
    labels = torch.zeros(similarity.shape, dtype=torch.bool, device=device)
    first = first.nonzero()[:, 0]
    labels[query[first], column[first]] = True
    labels[torch.arange(len(instance_index), device=device), instance_index] = True
    return labels


def _check_shapes(similarity: Tensor, image_index: Tensor, instance_index: Tensor) -> None:
    if similarity.dim() != 2:
        raise ValueError(f"similarity has shape {tuple(similarity.shape)}, expected (q, N)")
    expected = {
        "instance_index": (instance_index, similarity.shape[0]),
        "image_index": (image_index, similarity.shape[1]),
    }
    for name, (tensor, length) in expected.items():
        if tensor.shape != (length,):
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, expected ({length},) for a similarity of shape "
                f"{tuple(similarity.shape)}"
            )
    if len(instance_index):
        least, most = torch.stack(instance_index.aminmax()).tolist()
        if not 0 <= least <= most < similarity.shape[1]:
            raise ValueError(f"instance_index lies in {least}..{most}, expected 0..{similarity.shape[1] - 1}")
