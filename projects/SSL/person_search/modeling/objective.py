"""What SSL trains the re-id features with: memory banks, pseudo labels and the losses that read them (Eq. 13)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from torch import Tensor, nn

from ..labels import predict_multi_labels
from .losses import cluster_contrastive_loss, multi_label_loss, scale_invariant_loss
from .memory_bank import MemoryBank
from .roi_heads import TrainingEmbeddings


class SSLObjective(nn.Module):
    """Memory banks M_I and M_M, the cluster labels, and L_scale + L_cluster + L_DML.

    The banks are sized by `allocate` before training or before a checkpoint is loaded; without them only detection
    trains and inference works. Hooks set `threshold` and `cluster_labels` and apply `pending` updates.
    """

    cluster_labels: Tensor
    image_ids: Tensor

    @configurable
    def __init__(
        self,
        *,
        dim: int,
        multi_scale: bool,
        has_original: bool,
        momentum: float,
        renormalize: bool,
        label_source: str,
        scale_weight: float,
        margin: float,
        gamma: float,
        multi_label_weight: float,
        delta: float,
        hard_negative_ratio: float,
        cluster_weight: float,
        temperature: float,
        hard_negative_mass: float,
    ) -> None:
        """
        Args:
            dim: d of the features.
            multi_scale: whether exemplars, and so the bank M_M, exist.
            has_original: whether the last exemplar of a person is that of the original scale.
            momentum, renormalize: of the bank updates (Eq. 5).
            label_source: "mean" (Eq. 6) or "instance".
            scale_weight, margin, gamma: of the scale-invariant loss (Eq. 2-4).
            multi_label_weight, delta, hard_negative_ratio: of the multi-label loss (Eq. 11, 12).
            cluster_weight, temperature, hard_negative_mass: of the cluster loss.
        """
        super().__init__()
        self.dim = dim
        self.multi_scale = multi_scale
        self.has_original = has_original
        self.momentum, self.renormalize, self.label_source = momentum, renormalize, label_source
        self.scale_weight, self.margin, self.gamma = scale_weight, margin, gamma
        self.multi_label_weight, self.delta = multi_label_weight, delta
        self.hard_negative_ratio = hard_negative_ratio
        self.cluster_weight, self.temperature = cluster_weight, temperature
        self.hard_negative_mass = hard_negative_mass
        self.threshold = 1.0
        self.pending: tuple[Tensor, Tensor, Tensor | None] | None = None
        self.allocate(torch.zeros(0, dtype=torch.int64))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments of the constructor from a configuration."""
        ssl = cfg.SSL
        return {
            "dim": cfg.MODEL.SECOND_HEAD.EMBEDDING_DIM,
            "multi_scale": ssl.EXEMPLAR.ENABLED,
            "has_original": ssl.EXEMPLAR.ORIGINAL,
            "momentum": ssl.MEMORY.MOMENTUM,
            "renormalize": ssl.MEMORY.RENORMALIZE,
            "label_source": ssl.MEMORY.LABEL_SOURCE,
            "scale_weight": ssl.SCALE_LOSS.WEIGHT,
            "margin": ssl.SCALE_LOSS.MARGIN,
            "gamma": ssl.SCALE_LOSS.GAMMA,
            "multi_label_weight": ssl.MULTI_LABEL_LOSS.WEIGHT,
            "delta": ssl.MULTI_LABEL_LOSS.DELTA,
            "hard_negative_ratio": ssl.MULTI_LABEL_LOSS.HARD_NEGATIVE_RATIO,
            "cluster_weight": ssl.CLUSTER_LOSS.WEIGHT,
            "temperature": ssl.CLUSTER_LOSS.TEMPERATURE,
            "hard_negative_mass": ssl.CLUSTER_LOSS.HARD_NEGATIVE_MASS,
        }

    # ------------------------------------------------------------------ banks and labels

    @property
    def size(self) -> int:
        """N, number of bank rows."""
        return len(self.image_ids)

    def allocate(self, image_ids: Tensor) -> None:
        """Makes empty banks; every row starts as a cluster of its own.

        Args:
            image_ids: (N,) int64, equal for the persons of one image.
        """
        device = self.image_ids.device if hasattr(self, "image_ids") else image_ids.device
        self.instance_bank = MemoryBank(len(image_ids), self.dim).to(device)
        self.multi_scale_bank = MemoryBank(len(image_ids), self.dim).to(device) if self.multi_scale else None
        self.register_buffer("image_ids", image_ids.to(device), persistent=False)
        self.register_buffer("cluster_labels", torch.arange(len(image_ids), device=device))

    def label_features(self) -> Tensor:
        """(N, d) M of Eq. 6, its rows of unit length (zero where never seen): what pseudo labels are predicted from."""
        multi_scale = None if self.multi_scale_bank is None else self.multi_scale_bank.features
        return self.source_features(self.instance_bank.features, multi_scale)

    def source_features(self, instances: Tensor, multi_scale: Tensor | None) -> Tensor:
        """(N, d) M of Eq. 6 for given features (N, d) of the main branch and of the exemplars, see `label_features`."""
        if multi_scale is not None and self.label_source == "mean":
            instances = instances + multi_scale
        return F.normalize(instances, dim=1)

    @torch.no_grad()
    def apply_pending(self) -> None:
        """Writes the last batch's features into the banks, after gathering them so that all processes stay equal."""
        if self.pending is None:
            return
        (rows, instances, multi_scale), self.pending = self.pending, None
        gathered = comm.all_gather(tuple(None if t is None else t.cpu() for t in (rows, instances, multi_scale)))
        device = self.image_ids.device
        rows, instances = (torch.cat([g[i] for g in gathered]).to(device) for i in (0, 1))
        self.instance_bank.update(rows, instances, self.momentum, self.renormalize)
        if self.multi_scale_bank is not None:
            features = torch.cat([g[2] for g in gathered]).to(device)
            self.multi_scale_bank.update(rows, features, self.momentum, self.renormalize)

    # ------------------------------------------------------------------ losses

    def forward(self, batch: TrainingEmbeddings) -> dict[str, Tensor]:
        """Losses of one batch, already weighted; the features are kept for the bank update.

        Args:
            batch: features of the RoIs, the persons and their exemplars.

        Returns:
            scalars by name, {} before the banks are allocated.
        """
        if self.size == 0:
            return {}
        multi_scale = None if batch.exemplars is None else F.normalize(batch.exemplars.mean(dim=1), dim=1)
        self.pending = (batch.rows, batch.persons.detach(), None if multi_scale is None else multi_scale.detach())
        losses: dict[str, Tensor] = {}
        # Mixed precision ends here: similarities meet thresholds, and temperatures magnify their rounding.
        with torch.autocast(self.image_ids.device.type, enabled=False):
            if self.scale_weight and batch.exemplars is not None:
                losses["loss_scale"] = self.scale_weight * self._scale_loss(batch)
            if self.cluster_weight:
                losses |= self._cluster_losses(batch, multi_scale)
            if self.multi_label_weight:
                losses |= self._multi_label_losses(batch, multi_scale)
        return losses

    def _scale_loss(self, batch: TrainingEmbeddings) -> Tensor:
        originals = batch.exemplars[:, -1] if self.has_original else None
        scales = batch.exemplars[:, :-1] if self.has_original else batch.exemplars
        return scale_invariant_loss(batch.persons, originals, scales, batch.images, self.margin, self.gamma)

    def _cluster_losses(self, batch: TrainingEmbeddings, multi_scale: Tensor | None) -> dict[str, Tensor]:
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

    def _multi_label_losses(self, batch: TrainingEmbeddings, multi_scale: Tensor | None) -> dict[str, Tensor]:
        labels = self.predict_labels(batch.rows)
        # Eq. 12 sums over the persons of the whole batch, while data-parallel training averages over processes.
        weight = self.multi_label_weight * comm.get_world_size()
        pairs = {"instance": (batch.persons, self.instance_bank)}
        if multi_scale is not None:
            pairs["multi_scale"] = (multi_scale, self.multi_scale_bank)
        return {
            f"loss_multi_label_{name}": weight
            * multi_label_loss(features, bank.features, labels, self.delta, self.hard_negative_ratio)
            for name, (features, bank) in pairs.items()
        }

    @torch.no_grad()
    def predict_labels(self, rows: Tensor) -> Tensor:
        """Multi-labels (q, N) bool of bank rows (q,) at the current threshold (Eq. 7-10)."""
        features = self.label_features()
        return predict_multi_labels(features[rows] @ features.T, self.image_ids, rows, self.threshold)
