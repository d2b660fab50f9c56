"""CGPS (Yan et al. 2022): weakly supervised re-id guided by detection, memory and scene context."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...errors import ConfigError
from ..heads import TrainingEmbeddings
from .base import REID_OBJECTIVE_REGISTRY, BankObjective
from .oim import update_table


def detection_context_loss(
    persons: Tensor, labels: Tensor, backgrounds: Tensor, margin: float, background_weight: float
) -> Tensor:
    """Detection context loss of CGPS: a batch-hard triplet loss between persons, and between persons and background.

    For each person RoI, the hinge of `margin` + the largest distance to a RoI of the same label - the smallest distance
    to a RoI of another label, averaged over RoIs; plus `background_weight` times the same loss with persons as one
    class and backgrounds as the other. Distances are Euclidean.

    Args:
        persons: (R, d) unit features of positive RoIs.
        labels: (R,) integers.
        backgrounds: (G, d) unit features of negative RoIs.
        margin: margin of the hinges.
        background_weight: weight of the second term.

    Returns:
        A scalar. The first term is 0 if all labels are equal, the second without backgrounds.
    """
    loss = persons.sum() * 0.0
    if len(persons) == 0:
        return loss
    between = _distances(persons, persons)
    same = labels[:, None] == labels[None]
    if not same.all():
        farthest = between.masked_fill(~same, 0.0).amax(dim=1)
        nearest = between.masked_fill(same, float("inf")).amin(dim=1)
        # Not all labels are equal, so every row has a negative.
        loss = loss + (margin + farthest - nearest).clamp(min=0).mean()
    if len(backgrounds):
        nearest = _distances(persons, backgrounds).amin(dim=1)
        loss = loss + background_weight * (margin + between.amax(dim=1) - nearest).clamp(min=0).mean()
    return loss


def _distances(left: Tensor, right: Tensor) -> Tensor:
    squares = left.square().sum(dim=1)[:, None] + right.square().sum(dim=1)[None] - 2 * left @ right.T
    # The gradient of the root diverges at 0.
    return squares.clamp(min=1e-12).sqrt()


@REID_OBJECTIVE_REGISTRY.register()
class CGPSObjective(BankObjective):
    """CGPS objective on the memory bank M_I, updated by one positive RoI after another.

    The three contexts are: detection, `detection_context_loss`; memory, the cluster loss restricted to the hardest
    negative clusters; scene, the constraint of the clustering that persons of one image differ.
    """

    reads_persons = False

    @configurable
    def __init__(self, *, context_weight: float, margin: float, background_weight: float, **kwargs: Any) -> None:
        """
        Args:
            context_weight: weight of the detection context loss.
            margin, background_weight: see `detection_context_loss`.
            kwargs: arguments of `BankObjective`.
        """
        super().__init__(**kwargs)
        self.context_weight, self.margin, self.background_weight = context_weight, margin, background_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Constructor arguments from a config.

        Raises:
            ConfigError: SSL.MEMORY.RENORMALIZE is False; CGPS renormalizes a row after each RoI.
        """
        if not cfg.SSL.MEMORY.RENORMALIZE:
            raise ConfigError(
                "SSL.MEMORY.RENORMALIZE is False, but CGPSObjective renormalizes every row: set it to True"
            )
        return {
            **super().from_config(cfg),
            "context_weight": cfg.CGPS.CONTEXT_WEIGHT,
            "margin": cfg.CGPS.MARGIN,
            "background_weight": cfg.CGPS.BACKGROUND_WEIGHT,
        }

    def _losses(self, batch: TrainingEmbeddings) -> dict[str, Tensor]:
        self.pending = {"instance_index": batch.roi_instance_index, "rois": batch.rois.detach()}
        losses = self._cluster_losses(batch, None)
        if self.context_weight:
            labels = self.cluster_labels[batch.roi_instance_index]
            context = detection_context_loss(batch.rois, labels, batch.backgrounds, self.margin, self.background_weight)
            losses["loss_context"] = self.context_weight * context
        return losses

    def _remember(self, pending: dict[str, Tensor]) -> None:
        rows, features = pending["instance_index"], pending["rois"]
        update_table(self.instance_bank.features, rows, features, momentum=1 - self.new_weight)
