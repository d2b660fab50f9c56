"""Weakly supervised objectives: memory banks with a row for each person, cluster labels in place of identities."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import Tensor

from .losses import cluster_contrastive_loss
from .memory_bank import MemoryBank
from .one_head import TrainingEmbeddings
from .reid_objective import ReIDObjective


class BankObjective(ReIDObjective):
    """Memory banks M_I and M_M with their update (paper Eq. 5), the cluster labels, and the loss that reads them.

    The hooks fill the banks before the first iteration and set `cluster_labels` before each epoch. A subclass calls
    `_keep` and `_cluster_losses` in its `_losses`.

    Attributes:
        predicts_multi_labels: whether it has a `threshold`, which a hook sets, and `predict_labels`.
    """

    predicts_multi_labels: ClassVar[bool] = False
    cluster_labels: Tensor
    image_ids: Tensor

    def __init__(
        self,
        *,
        dim: int,
        multi_scale: bool,
        momentum: float,
        renormalize: bool,
        label_source: str,
        cluster_weight: float,
        temperature: float,
        hard_negative_mass: float,
    ) -> None:
        """
        Args:
            dim: d of the features.
            multi_scale: whether exemplars, and so the bank M_M, exist.
            momentum, renormalize: of the bank updates (Eq. 5).
            label_source: "mean" (Eq. 6) or "instance".
            cluster_weight, temperature, hard_negative_mass: of the cluster loss.
        """
        super().__init__()
        self.dim = dim
        self.multi_scale = multi_scale
        self.momentum, self.renormalize, self.label_source = momentum, renormalize, label_source
        self.cluster_weight, self.temperature = cluster_weight, temperature
        self.hard_negative_mass = hard_negative_mass
        self.allocate(torch.zeros(0, dtype=torch.int64))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments of the constructor from a configuration."""
        ssl = cfg.SSL
        return {
            "dim": cfg.MODEL.SECOND_HEAD.EMBEDDING_DIM,
            "multi_scale": ssl.EXEMPLAR.ENABLED,
            "momentum": ssl.MEMORY.MOMENTUM,
            "renormalize": ssl.MEMORY.RENORMALIZE,
            "label_source": ssl.MEMORY.LABEL_SOURCE,
            "cluster_weight": ssl.CLUSTER_LOSS.WEIGHT,
            "temperature": ssl.CLUSTER_LOSS.TEMPERATURE,
            "hard_negative_mass": ssl.CLUSTER_LOSS.HARD_NEGATIVE_MASS,
        }

    # ------------------------------------------------------------------ banks and labels

    def allocate(self, image_ids: Tensor, identities: Tensor | None = None) -> None:
        """Makes empty banks; every row starts as a cluster of its own. See `ReIDObjective.allocate`.

        Raises:
            ValueError: identities are given, which no weakly supervised objective may see.
        """
        if identities is not None:
            raise ValueError(f"{type(self).__name__} is weakly supervised: it must not be given identities")
        device = self.image_ids.device if hasattr(self, "image_ids") else image_ids.device
        self.size = len(image_ids)
        self.instance_bank = MemoryBank(self.size, self.dim).to(device)
        self.multi_scale_bank = MemoryBank(self.size, self.dim).to(device) if self.multi_scale else None
        self.register_buffer("image_ids", image_ids.to(device), persistent=False)
        self.register_buffer("cluster_labels", torch.arange(self.size, device=device))

    def label_features(self) -> Tensor:
        """(N, d) M of Eq. 6, its rows of unit length (zero where never seen): what pseudo labels are predicted from."""
        multi_scale = None if self.multi_scale_bank is None else self.multi_scale_bank.features
        return self.source_features(self.instance_bank.features, multi_scale)

    def source_features(self, instances: Tensor, multi_scale: Tensor | None) -> Tensor:
        """(N, d) M of Eq. 6 for given features (N, d) of the main branch and of the exemplars, see `label_features`."""
        if multi_scale is not None and self.label_source == "mean":
            instances = instances + multi_scale
        return F.normalize(instances, dim=1)

    def _keep(self, batch: TrainingEmbeddings) -> Tensor | None:
        """Keeps the persons' features for the bank update; returns f^h (P, d) of their exemplars if there are any."""
        multi_scale = None if batch.exemplars is None else F.normalize(batch.exemplars.mean(dim=1), dim=1)
        self.pending = (batch.rows, batch.persons.detach(), None if multi_scale is None else multi_scale.detach())
        return multi_scale

    def _remember(self, rows: Tensor, instances: Tensor, multi_scale: Tensor | None) -> None:
        self.instance_bank.update(rows, instances, self.momentum, self.renormalize)
        if self.multi_scale_bank is not None:
            self.multi_scale_bank.update(rows, multi_scale, self.momentum, self.renormalize)

    # ------------------------------------------------------------------ losses

    def _cluster_losses(self, batch: TrainingEmbeddings, multi_scale: Tensor | None) -> dict[str, Tensor]:
        """L_cluster of the positive RoIs against M_I and of f^h against M_M; {} at weight 0."""
        if not self.cluster_weight:
            return {}
        common = (self.temperature, self.hard_negative_mass)
        losses = {
            "loss_cluster_instance": cluster_contrastive_loss(
                batch.rois, self.instance_bank.features, self.cluster_labels, batch.roi_rows, *common
            )
        }
        if multi_scale is not None:
            losses["loss_cluster_multi_scale"] = cluster_contrastive_loss(
                multi_scale, self.multi_scale_bank.features, self.cluster_labels, batch.rows, *common
            )
        return {name: self.cluster_weight * value for name, value in losses.items()}
