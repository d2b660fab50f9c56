"""R-SiamNet (Han et al. 2021): consistency between a person's region in the scene and its crop in a siamese network."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...values import check_values
from ..heads import TrainingEmbeddings
from .base import REID_OBJECTIVE_REGISTRY, BankObjective, given


def region_consistency_loss(regions: Tensor, crops: Tensor) -> Tensor:
    """Mean cosine distance between the features of a person with scene context (RoI) and without (crops).

    Args:
        regions: (P, d) unit features of the persons' RoIs.
        crops: (P, S, d) unit features of their crops.

    Returns:
        A scalar; 0 without persons. Gradients flow into both inputs.
    """
    if len(regions) == 0:
        return regions.sum() * 0.0 + crops.sum() * 0.0
    return (1 - (regions[:, None] * crops).sum(dim=-1)).mean()


def similarity_consistency_loss(regions: Tensor, crops: Tensor, temperature: float) -> Tensor:
    """Divergence between the persons' mutual similarities in the scenes and in the crops.

    The softmax of a person's similarities to the other persons of the batch gives one distribution over RoIs and one
    over crops. The loss is the mean of the Kullback-Leibler divergences in both directions, averaged over persons.

    Args:
        regions: (P, d) unit features of the persons' RoIs.
        crops: (P, S, d) unit features of their crops; each of the S is compared with the regions.
        temperature: divisor of the similarities.

    Returns:
        A scalar; 0 with fewer than three persons, where the distributions are trivial. Gradients flow into both inputs.
    """
    count = len(regions)
    if count < 3:
        return regions.sum() * 0.0 + crops.sum() * 0.0
    others = ~torch.eye(count, dtype=torch.bool, device=regions.device)

    def log_distribution(features: Tensor) -> Tensor:  # (..., P, d) -> (..., P, P - 1)
        similarity = features @ features.transpose(-1, -2) / temperature
        return similarity[..., others].unflatten(-1, (count, count - 1)).log_softmax(dim=-1)

    scene, crop = log_distribution(regions), log_distribution(crops.transpose(0, 1))
    # The sum of (p - q) (log p - log q) is the sum of both divergences.
    return ((scene.exp() - crop.exp()) * (scene - crop)).sum(dim=-1).mean() / 2


@REID_OBJECTIVE_REGISTRY.register()
class RSiamNetObjective(BankObjective):
    """R-SiamNet objective: instance-level consistency between regions and crops, cluster-level contrast for both.

    The exemplars are the crops. Regions are stored in the memory bank M_I, crops in M_M; both are clustered together.
    """

    exemplars = (True,)

    @configurable
    def __init__(
        self, *, region_weight: float, similarity_weight: float, similarity_temperature: float, **kwargs: Any
    ) -> None:
        """
        Args:
            region_weight: weight of `region_consistency_loss`.
            similarity_weight, similarity_temperature: weight and temperature of `similarity_consistency_loss`.
            kwargs: arguments of `BankObjective`.
        """
        super().__init__(**kwargs)
        self.region_weight = region_weight
        self.similarity_weight, self.similarity_temperature = similarity_weight, similarity_temperature

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Constructor arguments from a config.

        Raises:
            ConfigError: RSIAMNET.SIMILARITY_TEMPERATURE is not positive.
        """
        keys = cfg.RSIAMNET
        check_values(cfg, ["RSIAMNET.SIMILARITY_TEMPERATURE"])
        return {
            **super().from_config(cfg),
            "region_weight": keys.REGION_WEIGHT,
            "similarity_weight": keys.SIMILARITY_WEIGHT,
            "similarity_temperature": keys.SIMILARITY_TEMPERATURE,
        }

    def _losses(self, batch: TrainingEmbeddings) -> dict[str, Tensor]:
        losses = self._cluster_losses(batch, self._keep(batch))
        regions, crops = given(batch.persons, "annotated persons"), given(batch.exemplars, "exemplars")
        if self.region_weight:
            losses["loss_region"] = self.region_weight * region_consistency_loss(regions, crops)
        if self.similarity_weight:
            similarity = similarity_consistency_loss(regions, crops, self.similarity_temperature)
            losses["loss_similarity"] = self.similarity_weight * similarity
        return losses
