"""Losses of SSL as pure functions of tensors (paper Eq. 2-4 and 11-12, and the cluster loss of CGPS)."""

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
    """Scale-invariant loss L_scale: a triplet loss between a person's feature and the exemplars of its image.

    Paper Eq. 2-4: for each person, the hinge of `margin` + the largest distance to its own exemplars - the smallest
    distance to an exemplar of another person of the image, plus `gamma` times the distance to its original-scale
    exemplar; averaged over the persons of an image, then over images. Distances are squared Euclidean.

    Args:
        instances: (P, d) unit features of the main branch.
        originals: (P, d) unit features of the exemplars at the original scale; None without that scale.
        exemplars: (P, K, d) unit features of the exemplars at K fixed scales. K = 0 is allowed with `originals`, which
            then also serve as positives.
        image_index: (P,) integers, equal for persons of one image.
        margin: m.
        gamma: weight of the original-scale term.

    Returns:
        A scalar; 0 without persons. A person alone in its image has no negatives and a hinge of 0.

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
    """Multi-label loss L_DML: regression of similarities to 1 for positive and -1 for negative rows (paper Eq. 11).

    Args:
        features: (q, d) unit features.
        memory: (N, d) bank rows; no gradient flows into them.
        labels: (q, N) bool, positives of each feature.
        delta: weight of the positives.
        hard_negative_ratio: fraction of the negatives used, the most similar ones; 1 for all (Eq. 11).

    Returns:
        A scalar: the sum over features of delta * mean over positives + mean over negatives. Gradients flow into
        `features` only. Peak memory is one (q, N) float array.
    """
    if len(features) == 0:
        return features.sum() * 0.0
    return _MultiLabelLoss.apply(features.float(), memory.detach().float(), labels, delta, hard_negative_ratio)


class _MultiLabelLoss(torch.autograd.Function):
    """`multi_label_loss` with a closed-form gradient.

    With N in the tens of thousands, (q, N) arrays dominate the cost, and autograd would keep one per operation. Here
    the similarities are the only float array of that size: they are turned in place into the weights w of the gradient,
    w @ memory, which is computed in the forward pass.
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
    """Replaces similarities s (q, N) in place by s + 1 for the hardest fraction `ratio` of the negatives, else by 0.

    Returns:
        (q,) int64, number of negatives kept, at least 1.
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
    """Cluster contrastive loss L_cluster: cross-entropy over clusters with hard negatives only (CGPS).

    The logit of a cluster is the mean similarity to its members' rows, divided by `temperature`. Negative clusters are
    sorted by their share of the negatives' softmax mass and kept up to the one whose cumulative share is nearest to
    `hard_negative_mass`.

    Args:
        features: (q, d) unit features.
        memory: (N, d) bank rows; no gradient flows into them.
        cluster_labels: (N,) int64, cluster of each row, from 0.
        targets: (q,) int64, bank row of each feature's person.
        temperature: divisor of the similarities.
        hard_negative_mass: share in (0, 1]; 1 keeps every negative cluster.
        epsilon: constant added to the softmax's denominator and to the probability before the logarithm, as in CGPS's
            code. Gradients vanish where the probability is far below it.

    Returns:
        A scalar, the mean over features; 0 without features.
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
    """In-scene separation loss: similarity over a margin between different persons of an image. Not in the paper.

    For each RoI, the excess max(s - margin, 0) over the RoIs of other persons in its image, averaged with its softmax
    as weights so that the most similar RoIs dominate; then averaged over the RoIs of an image, and over images.

    Args:
        features: (R, d) unit features of positive RoIs.
        persons: (R,) integers, person matched to each RoI.
        image_index: (R,) integers, image of each RoI.
        margin: similarity that is not penalised.

    Returns:
        A scalar; 0 if no image shows two persons. RoIs alone in their image are ignored.
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
    """Mean row of every cluster (C, d). The similarity to the mean equals the mean similarity to the members.

    Args:
        memory: (N, d).
        cluster_labels: (N,) int64, from 0 without gaps.
    """
    counts = torch.bincount(cluster_labels)
    sums = memory.new_zeros(len(counts), memory.shape[1]).index_add_(0, cluster_labels, memory)
    return sums / counts[:, None]


def _easy_negatives(logits: Tensor, positive: Tensor, mass: float) -> Tensor:
    """Mask (q, C) bool of the negative clusters to be ignored."""
    negative_logits = logits.scatter(1, positive[:, None], float("-inf"))
    share = negative_logits.softmax(dim=1)
    ordered = share.sort(dim=1, descending=True).values
    last = (ordered.cumsum(dim=1) - mass).abs().argmin(dim=1, keepdim=True)
    easy = share < ordered.gather(1, last)
    return easy.scatter(1, positive[:, None], False)
