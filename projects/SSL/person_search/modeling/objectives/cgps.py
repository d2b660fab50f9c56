"""CGPS (Yan et al. 2022): weakly supervised re-id guided by the context of detection, of the memory, of the scene."""

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
    """Pulls RoIs of one label together and away from other persons, and all persons away from background (CGPS).

    For each person RoI the hinge of `margin` + its largest distance to a RoI of its label - its smallest to one of
    another label, averaged; plus `background_weight` times the same with all person RoIs as one class and the
    background RoIs as the other. Distances are Euclidean.

    Args:
        persons: (R, d) unit features of positive RoIs.
        labels: (R,) integers.
        backgrounds: (G, d) unit features of negative RoIs.
        margin: of the hinges.
        background_weight: weight of the second part.

    Returns:
        A scalar. A part is 0 where there is no RoI of another label, or no background.
    """
    loss = persons.sum() * 0.0
    if len(persons) == 0:
        return loss
    between = _distances(persons, persons)
    same = labels[:, None] == labels[None]
    if not same.all():
        farthest = between.masked_fill(~same, 0.0).amax(dim=1)
        nearest = between.masked_fill(same, float("inf")).amin(dim=1)
        # Every row has a negative, since not all labels are equal.
        loss = loss + (margin + farthest - nearest).clamp(min=0).mean()
    if len(backgrounds):
        nearest = _distances(persons, backgrounds).amin(dim=1)
        loss = loss + background_weight * (margin + between.amax(dim=1) - nearest).clamp(min=0).mean()
    return loss


def _distances(left: Tensor, right: Tensor) -> Tensor:
    squares = left.square().sum(dim=1)[:, None] + right.square().sum(dim=1)[None] - 2 * left @ right.T
    # Below this the root has no usable slope.
    return squares.clamp(min=1e-12).sqrt()


@REID_OBJECTIVE_REGISTRY.register()
class CGPSObjective(BankObjective):
    """CGPS on the memory bank M_I, whose rows each positive RoI moves in turn.

    Its three contexts: of detection, `detection_context_loss`; of the memory, the cluster loss in which only the
    hardest negative clusters count; of the scene, the clustering's rule that persons of one image are different.
    """

    reads_persons = False

    @configurable
    def __init__(self, *, context_weight: float, margin: float, background_weight: float, **kwargs: Any) -> None:
        """
        Args:
            context_weight: weight of the detection context.
            margin, background_weight: see `detection_context_loss`.
            kwargs: arguments of `BankObjective`.
        """
        super().__init__(**kwargs)
        self.context_weight, self.margin, self.background_weight = context_weight, margin, background_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments of the constructor from a configuration.

        Raises:
            ConfigError: rows are not to be renormalised, which CGPS does after each RoI.
        """
        if not cfg.SSL.MEMORY.RENORMALIZE:
            raise ConfigError(
                "SSL.MEMORY.RENORMALIZE is False, but CGPSObjective renormalises every row: set it to True"
            )
        return {
            **super().from_config(cfg),
            "context_weight": cfg.CGPS.CONTEXT_WEIGHT,
            "margin": cfg.CGPS.MARGIN,
            "background_weight": cfg.CGPS.BACKGROUND_WEIGHT,
        }

    def _losses(self, batch: TrainingEmbeddings) -> dict[str, Tensor]:
        self.pending = (batch.roi_instance_index, batch.rois.detach())
        losses = self._cluster_losses(batch, None)
        if self.context_weight:
            labels = self.cluster_labels[batch.roi_instance_index]
            context = detection_context_loss(batch.rois, labels, batch.backgrounds, self.margin, self.background_weight)
            losses["loss_context"] = self.context_weight * context
        return losses

    def _remember(self, instance_index: Tensor, features: Tensor) -> None:
        update_table(self.instance_bank.features, instance_index, features, momentum=1 - self.new_weight)
