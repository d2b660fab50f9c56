"""Objective of SSL: memory banks, pseudo labels and the losses on them (Eq. 13)."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from torch import Tensor

from ...labels import predict_multi_labels
from ...tf32 import full_precision
from ..heads import TrainingEmbeddings
from ..losses import in_scene_separation_loss, multi_label_loss, scale_invariant_loss
from .base import REID_OBJECTIVE_REGISTRY, MemoryBank, MultiLabelObjective, given


@REID_OBJECTIVE_REGISTRY.register()
class SSLObjective(MultiLabelObjective):
    """L_scale + L_cluster + L_DML on the memory banks (Eq. 13)."""

    exemplars = (False, True)

    @configurable
    def __init__(
        self,
        *,
        has_original: bool,
        scale_weight: float,
        margin: float,
        gamma: float,
        multi_label_weight: float,
        delta: float,
        hard_negative_ratio: float,
        multi_label_reduction: str,
        in_scene_weight: float,
        in_scene_margin: float,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            has_original: whether the last exemplar of a person is the one at the original scale.
            scale_weight, margin, gamma: scale-invariant loss (Eq. 2-4).
            multi_label_weight, delta, hard_negative_ratio: multi-label loss (Eq. 11, 12).
            multi_label_reduction: "sum" or "mean" of the multi-label loss over the persons of all processes.
            in_scene_weight, in_scene_margin: in-scene separation loss (not in the paper).
            kwargs: arguments of `BankObjective`.
        """
        super().__init__(**kwargs)
        self.has_original = has_original
        self.scale_weight, self.margin, self.gamma = scale_weight, margin, gamma
        self.multi_label_weight, self.delta = multi_label_weight, delta
        self.hard_negative_ratio = hard_negative_ratio
        self.multi_label_reduction = multi_label_reduction
        self.in_scene_weight, self.in_scene_margin = in_scene_weight, in_scene_margin
        self._threshold: float | None = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Constructor arguments from a config."""
        ssl = cfg.SSL
        return {
            **super().from_config(cfg),
            "has_original": ssl.EXEMPLAR.ORIGINAL,
            "scale_weight": ssl.SCALE_LOSS.WEIGHT,
            "margin": ssl.SCALE_LOSS.MARGIN,
            "gamma": ssl.SCALE_LOSS.GAMMA,
            "multi_label_weight": ssl.MULTI_LABEL_LOSS.WEIGHT,
            "delta": ssl.MULTI_LABEL_LOSS.DELTA,
            "hard_negative_ratio": ssl.MULTI_LABEL_LOSS.HARD_NEGATIVE_RATIO,
            "multi_label_reduction": ssl.MULTI_LABEL_LOSS.REDUCTION,
            "in_scene_weight": ssl.IN_SCENE_LOSS.WEIGHT,
            "in_scene_margin": ssl.IN_SCENE_LOSS.MARGIN,
        }

    @property
    def threshold(self) -> float | None:
        """Minimum cosine similarity of a positive bank row; None until it is set."""
        return self._threshold

    def set_threshold(self, threshold: float) -> None:
        """Sets the threshold; see `MultiLabelObjective.set_threshold`."""
        self._threshold = threshold

    def _losses(self, batch: TrainingEmbeddings) -> dict[str, Tensor]:
        multi_scale = self._keep(batch)
        losses: dict[str, Tensor] = {}
        if self.scale_weight and batch.exemplars is not None:
            losses["loss_scale"] = self.scale_weight * self._scale_loss(batch, batch.exemplars)
        losses |= self._cluster_losses(batch, multi_scale)
        if self.multi_label_weight:
            losses |= self._multi_label_losses(batch, multi_scale)
        if self.in_scene_weight:
            person = batch.roi_instance_index
            separation = in_scene_separation_loss(batch.rois, person, self.image_index[person], self.in_scene_margin)
            losses["loss_in_scene"] = self.in_scene_weight * separation
        return losses

    def _scale_loss(self, batch: TrainingEmbeddings, exemplars: Tensor) -> Tensor:
        originals = exemplars[:, -1] if self.has_original else None
        scales = exemplars[:, :-1] if self.has_original else exemplars
        persons = given(batch.persons, "annotated persons")
        return scale_invariant_loss(persons, originals, scales, batch.image_index, self.margin, self.gamma)

    def _multi_label_losses(self, batch: TrainingEmbeddings, multi_scale: Tensor | None) -> dict[str, Tensor]:
        labels = self.predict_labels(batch.instance_index)
        # Eq. 12 sums over the persons of the whole batch; data-parallel training averages over processes.
        weight = self.multi_label_weight * comm.get_world_size()
        if self.multi_label_reduction == "mean":
            weight = weight / persons_of_all_processes(batch.instance_index)
        pairs: dict[str, tuple[Tensor, MemoryBank]] = {
            "instance": (given(batch.persons, "annotated persons"), self.instance_bank)
        }
        if multi_scale is not None and self.multi_scale_bank is not None:
            pairs["multi_scale"] = (multi_scale, self.multi_scale_bank)
        return {
            f"loss_multi_label_{name}": weight
            * multi_label_loss(features, bank.features, labels, self.delta, self.hard_negative_ratio)
            for name, (features, bank) in pairs.items()
        }

    @torch.no_grad()
    def predict_labels(self, instance_index: Tensor) -> Tensor:
        """Multi-labels (q, N) bool of bank rows (q,) at the current threshold (Eq. 7-10)."""
        features = self.label_features()
        with full_precision():
            similarity = features[instance_index] @ features.T
        if self.threshold is None:  # there is no sensible default
            raise RuntimeError("the threshold of the multi-labels is not set: call set_threshold before each epoch")
        return predict_multi_labels(similarity, self.image_index, instance_index, self.threshold)


def persons_of_all_processes(instance_index: Tensor) -> Tensor:
    """Number of persons in the batches of all processes, at least 1; a float32 scalar."""
    count = instance_index.new_full((), len(instance_index), dtype=torch.float32)
    if comm.get_world_size() > 1:
        dist.all_reduce(count)
    return count.clamp(min=1)
