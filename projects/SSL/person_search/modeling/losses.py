"""The losses of SSL as pure functions of tensors (paper Eq. 2-4 and 11-12, and the cluster loss of CGPS)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def scale_invariant_loss(
    instances: Tensor,
    originals: Tensor | None,
    exemplars: Tensor,
    image_index: Tensor,
    margin: float,
    gamma: float,
) -> Tensor:
    """Pulls a person's feature towards the exemplars at every scale, away from those of the others in its image.

    Paper Eq. 2-4: for each person of an image the hinge of `margin` + the largest distance to its own exemplars - the
    smallest distance to any exemplar of another person of the image, plus `gamma` times the distance to its original
    exemplar; averaged over the persons of an image, then over the images. Distances are squared Euclidean.

    Args:
        instances: (P, d) unit features of the main branch.
        originals: (P, d) unit features of the exemplars at the original scale, or None where that scale is left out.
        exemplars: (P, K, d) unit features of the exemplars at K fixed scales. K = 0 is allowed with `originals`, which
            then also serve as the positives.
        image_index: (P,) integers, equal for persons of one image.
        margin: m.
        gamma: weight of the original scale.

    Returns:
        A scalar, 0 without persons. A person alone in its image has no negatives and a hinge of 0.

    Raises:
        ValueError: there are neither originals nor exemplars.
    """
    if originals is None and exemplars.shape[1] == 0:
        raise ValueError("the scale-invariant loss needs exemplars at one scale at least")
    if len(instances) == 0:
        return instances.sum() * 0.0
    instances, exemplars = instances.float(), exemplars.float()
    candidates = exemplars
    if originals is not None:
        candidates = torch.cat([exemplars, originals.float()[:, None]], dim=1)
    # distance[i, j, s] between instance i and exemplar s of person j.
    distance = (instances[:, None, None] - candidates[None]).square().sum(dim=-1)
    own = torch.diagonal(distance).T
    positive = own[:, : max(exemplars.shape[1], 1)].amax(dim=1)
    other = image_index[:, None] == image_index[None]
    other.fill_diagonal_(False)
    negative = distance.masked_fill(~other[..., None], float("inf")).amin(dim=(1, 2))
    loss = (margin + positive - negative).clamp(min=0)
    if originals is not None:
        loss = loss + gamma * own[:, -1]
    _, image, persons = torch.unique(image_index, return_inverse=True, return_counts=True)
    return (loss / persons[image]).sum() / len(persons)


def multi_label_loss(
    features: Tensor, memory: Tensor, labels: Tensor, delta: float, hard_negative_ratio: float = 1.0
) -> Tensor:
    """Regresses the similarity to every positive row to 1 and to every negative row to -1 (paper Eq. 11).

    Args:
        features: (q, d) unit features.
        memory: (N, d) bank rows; no gradient flows into them.
        labels: (q, N) bool, the positives of each feature.
        delta: weight of the positives.
        hard_negative_ratio: share of the negatives that count, the most similar ones; 1 takes all (Eq. 11).

    Returns:
        A scalar: the sum over the features of delta * mean over positives + mean over negatives. Its gradient flows
        into `features` alone. Besides the (q, N) similarities no float array of that size exists at any time.
    """
    if len(features) == 0:
        return features.sum() * 0.0
    return _MultiLabelLoss.apply(features.float(), memory.detach().float(), labels, delta, hard_negative_ratio)


class _MultiLabelLoss(torch.autograd.Function):
    """`multi_label_loss` with its gradient in closed form.

    Where N is in the ten thousands, (q, N) arrays are what the loss costs, and autograd would keep one for each step of
    the formula. Here the similarities are the only one of floats: they turn in place into the weights w of the
    gradient, w @ memory, which is taken with the value. The backward pass has nothing left to do.
    """

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, memory: Tensor, labels: Tensor, delta: float, hard_negative_ratio: float
    ) -> Tensor:
        weights = features @ memory.T
        positive = labels.nonzero(as_tuple=True)
        error = weights[positive] - 1
        positives = torch.bincount(positive[0], minlength=len(features))
        value = (delta / positives)[positive[0]] @ error.square()
        if hard_negative_ratio >= 1.0:
            negatives = (labels.shape[1] - positives).clamp(min=1)
            weights.add_(1).index_put_(positive, weights.new_zeros(()))
        else:
            negatives = _keep_hardest_(weights, labels, hard_negative_ratio)
        value = value + (torch.linalg.vector_norm(weights, dim=1).square() / negatives).sum()
        if ctx.needs_input_grad[0]:
            weights.div_(negatives[:, None]).index_put_(positive, (delta / positives)[positive[0]] * error)
            ctx.save_for_backward(2 * (weights @ memory))
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return gradient * slope, None, None, None, None


def _keep_hardest_(similarity: Tensor, labels: Tensor, ratio: float) -> Tensor:
    """Turns similarities (q, N), in place, into s + 1 for the most similar share `ratio` of the negatives, 0 elsewhere.

    Returns:
        (q,) how many were kept, at least 1.
    """
    kept = ((~labels).sum(dim=1) * ratio).ceil().long()
    hardest, row = similarity.masked_fill_(labels, float("-inf")).topk(int(kept.max().clamp(min=1)), dim=1)
    counts = torch.arange(hardest.shape[1], device=hardest.device)[None] < kept[:, None]
    similarity.zero_().scatter_(1, row, torch.where(counts, hardest + 1, 0.0))
    return kept.clamp(min=1)


def cluster_contrastive_loss(
    features: Tensor,
    memory: Tensor,
    cluster_labels: Tensor,
    targets: Tensor,
    temperature: float,
    hard_negative_mass: float,
    epsilon: float = 0.0,
) -> Tensor:
    """Softmax over clusters in which only the hardest negative clusters count (CGPS; L_cluster of the paper).

    The logit of a cluster is the mean similarity to its members' rows over `temperature`. Of the negative clusters,
    sorted by their share of the negatives' softmax mass, those up to and with the one where the cumulative share is
    nearest `hard_negative_mass` count.

    Args:
        features: (q, d) unit features.
        memory: (N, d) bank rows; no gradient flows into them.
        cluster_labels: (N,) int64, the cluster of each row, from 0.
        targets: (q,) int64, the bank row of each feature's person.
        temperature: divisor of the similarities.
        hard_negative_mass: share in (0, 1]; 1 keeps every negative cluster.
        epsilon: added to the softmax's denominator and to the probability whose logarithm is taken, as in CGPS's code.
            Where the probability is far below it the gradient fades.

    Returns:
        A scalar, the mean over the features; 0 without features.
    """
    if len(features) == 0:
        return features.sum() * 0.0
    centres = cluster_means(memory.detach().float(), cluster_labels)
    logits = features.float() @ centres.T / temperature
    positive = cluster_labels[targets]
    if logits.shape[1] > 1:
        easy = _easy_negatives(logits.detach(), positive, hard_negative_mass)
        logits = logits.masked_fill(easy, float("-inf"))
    if epsilon <= 0:
        return F.cross_entropy(logits, positive)
    rest = logits.new_full((len(logits), 1), math.log(epsilon))
    probability = torch.cat([logits, rest], dim=1).softmax(dim=1).gather(1, positive[:, None])
    return -(probability + epsilon).log().mean()


def in_scene_separation_loss(features: Tensor, persons: Tensor, image_index: Tensor, margin: float) -> Tensor:
    """Similarity of RoIs of different persons of one image, as far as it exceeds a margin. Not in the paper.

    For each RoI, the excess max(s - margin, 0) over the RoIs of the other persons of its image, averaged with the
    softmax of the excess as weight, so that the most similar count most; then the mean over the RoIs of an image, and
    over the images.

    Args:
        features: (R, d) unit features of positive RoIs.
        persons: (R,) integers, the person that each RoI is matched to.
        image_index: (R,) integers, the image of each RoI.
        margin: similarity that costs nothing.

    Returns:
        A scalar; 0 where no image shows two persons. RoIs without another person in their image do not count.
    """
    features = features.float()
    apart = (image_index[:, None] == image_index[None]) & (persons[:, None] != persons[None])
    has_other = apart.any(dim=1)
    if not bool(has_other.any()):
        return features.sum() * 0.0
    excess = (features[has_other] @ features.T - margin).clamp(min=0)
    weight = excess.masked_fill(~apart[has_other], float("-inf")).softmax(dim=1)
    _, image, rois = torch.unique(image_index[has_other], return_inverse=True, return_counts=True)
    return ((weight * excess).sum(dim=1) / rois[image]).sum() / len(rois)


def cluster_means(memory: Tensor, cluster_labels: Tensor) -> Tensor:
    """Mean row (C, d) of every cluster; the mean similarity to members is the similarity to their mean.

    Args:
        memory: (N, d).
        cluster_labels: (N,) int64, from 0, every value below the maximum in use.
    """
    counts = torch.bincount(cluster_labels)
    sums = memory.new_zeros(len(counts), memory.shape[1]).index_add_(0, cluster_labels, memory)
    return sums / counts[:, None]


def _easy_negatives(logits: Tensor, positive: Tensor, mass: float) -> Tensor:
    """(q, C) bool: the negative clusters that do not count."""
    negative_logits = logits.scatter(1, positive[:, None], float("-inf"))
    share = negative_logits.softmax(dim=1)
    ordered = share.sort(dim=1, descending=True).values
    last = (ordered.cumsum(dim=1) - mass).abs().argmin(dim=1, keepdim=True)
    easy = share < ordered.gather(1, last)
    return easy.scatter(1, positive[:, None], False)
