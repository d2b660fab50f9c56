"""Re-id objectives: their registry, what they have in common, and memory banks with cluster labels."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from ...errors import ConfigError
from ..heads import TrainingEmbeddings
from ..losses import cluster_contrastive_loss


class MemoryBank(nn.Module):
    """N unit features as a buffer, so that a checkpoint holds them. Rows never seen are zero."""

    features: Tensor

    def __init__(self, size: int, dim: int) -> None:
        """
        Args:
            size: N, number of annotated persons.
            dim: d.
        """
        super().__init__()
        self.register_buffer("features", torch.zeros(size, dim))

    @torch.no_grad()
    def fill(self, instance_index: Tensor, features: Tensor) -> None:
        """Sets rows to features.

        Args:
            instance_index: (q,) int64, the rows.
            features: (q, d).
        """
        self.features[instance_index] = F.normalize(features.to(self.features), dim=1)

    @torch.no_grad()
    def update(self, instance_index: Tensor, features: Tensor, new_weight: float, renormalize: bool = True) -> None:
        """Moves rows towards features: lambda * new + (1 - lambda) * old (Eq. 5).

        A row named more than once (one frame twice in a batch) moves once, towards the mean of its features, so that
        the result depends neither on their order nor on the process that saw them.

        Args:
            instance_index: (q,) int64, the rows.
            features: (q, d).
            new_weight: lambda, the weight of the NEW feature, in [0, 1].
            renormalize: scale the updated rows to unit length.
        """
        unique, inverse = torch.unique(instance_index, return_inverse=True)
        sums = self.features.new_zeros(len(unique), self.features.shape[1])
        sums.index_add_(0, inverse, features.to(self.features))
        mean = sums / torch.bincount(inverse)[:, None]
        new = new_weight * mean + (1 - new_weight) * self.features[unique]
        self.features[unique] = F.normalize(new, dim=1) if renormalize else new


REID_OBJECTIVE_REGISTRY = Registry("REID_OBJECTIVE")
REID_OBJECTIVE_REGISTRY.__doc__ = """
Registry of re-id objectives: subclasses of `ReIDObjective` that are called with a config.
"""


class ReIDObjective(nn.Module, metaclass=ABCMeta):
    """Losses of the re-id features, and what they remember of the persons beyond a batch.

    `allocate` sizes the memory before training or before a checkpoint is loaded; without it only detection trains and
    inference works. A subclass computes its losses in `_losses`, where it puts what the memory is to learn from the
    batch into `pending`; after the iteration `apply_pending` gathers that from all processes, so that all remember the
    same, and hands it to `_remember`.

    Attributes:
        needs_identities: whether it is supervised. No other may see identities.
        exemplars: what it allows SSL.EXEMPLAR.ENABLED to be.
        reads_persons: whether it reads the features of the annotated boxes; where it does not they are not computed.
        size: N, number of annotated persons of the training set; 0 before `allocate`.
    """

    needs_identities: ClassVar[bool] = False
    exemplars: ClassVar[tuple[bool, ...]] = (False,)
    reads_persons: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.pending: tuple[Tensor | None, ...] | None = None
        self.size = 0

    @abstractmethod
    def allocate(self, image_index: Tensor, identities: Tensor | None = None) -> None:
        """Makes an empty memory.

        Args:
            image_index: (N,) int64, equal for the persons of one image.
            identities: (N,) int64, the identity of each person, numbered from 0 without gaps, -1 where unknown; None
                for an objective without `needs_identities`.
        """

    def forward(self, batch: TrainingEmbeddings) -> dict[str, Tensor]:
        """Losses of one batch; what the memory is to learn from it is kept for `apply_pending`.

        Args:
            batch: features of the RoIs, the persons and their exemplars.

        Returns:
            scalars by name, already weighted; {} before `allocate`.
        """
        if self.size == 0:
            return {}
        # Mixed precision ends here: similarities meet thresholds, and temperatures magnify their rounding.
        with torch.autocast(batch.rois.device.type, enabled=False):
            return self._losses(batch)

    @abstractmethod
    def _losses(self, batch: TrainingEmbeddings) -> dict[str, Tensor]:
        """Weighted losses by name. What the memory is to learn goes into `pending`."""

    @abstractmethod
    def _remember(self, *pending: Tensor | None) -> None:
        """Learns from what `pending` of all processes held, joined along rows in the order of the processes."""

    @torch.no_grad()
    def apply_pending(self) -> None:
        """Lets the memory learn from the last batch, after gathering it so that all processes stay equal."""
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        self._remember(*(pending if comm.get_world_size() == 1 else _gathered(pending)))


def _gathered(pending: tuple[Tensor | None, ...]) -> Iterator[Tensor | None]:
    """Joins the tensors of all processes along rows, on the devices that they have here."""
    everywhere = comm.all_gather(tuple(None if t is None else t.cpu() for t in pending))
    for own, parts in zip(pending, zip(*everywhere, strict=True), strict=True):
        yield None if own is None else torch.cat(parts).to(own.device)


def objective_class(cfg: CfgNode) -> type[ReIDObjective]:
    """The class that MODEL.OBJECTIVE.NAME names.

    Raises:
        ConfigError: it is not registered; those that are get listed.
    """
    name = cfg.MODEL.OBJECTIVE.NAME
    if name not in REID_OBJECTIVE_REGISTRY:
        known = ", ".join(sorted(key for key, _ in REID_OBJECTIVE_REGISTRY))
        raise ConfigError(f"MODEL.OBJECTIVE.NAME is {name!r}, expected one of {known}")
    return REID_OBJECTIVE_REGISTRY.get(name)


def build_objective(cfg: CfgNode) -> ReIDObjective:
    """The objective that MODEL.OBJECTIVE.NAME names, from the configuration."""
    return objective_class(cfg)(cfg)


class BankObjective(ReIDObjective):
    """Memory banks M_I and M_M with their update (paper Eq. 5), the cluster labels, and the loss that reads them.

    The hooks fill the banks before the first iteration and set `cluster_labels` before each epoch. A subclass calls
    `_keep` and `_cluster_losses` in its `_losses`.

    Attributes:
        predicts_multi_labels: whether it has `set_threshold`, which a hook calls, and `predict_labels`.
    """

    predicts_multi_labels: ClassVar[bool] = False
    cluster_labels: Tensor
    image_index: Tensor

    def __init__(
        self,
        *,
        dim: int,
        multi_scale: bool,
        new_weight: float,
        renormalize: bool,
        label_source: str,
        cluster_weight: float,
        temperature: float,
        hard_negative_mass: float,
        epsilon: float = 0.0,
    ) -> None:
        """
        Args:
            dim: d of the features.
            multi_scale: whether exemplars, and so the bank M_M, exist.
            new_weight, renormalize: of the bank updates, see `MemoryBank.update`.
            label_source: "mean" (Eq. 6) or "instance".
            cluster_weight, temperature, hard_negative_mass, epsilon: of the cluster loss.
        """
        super().__init__()
        self.dim = dim
        self.multi_scale = multi_scale
        self.new_weight, self.renormalize, self.label_source = new_weight, renormalize, label_source
        self.cluster_weight, self.temperature = cluster_weight, temperature
        self.hard_negative_mass, self.epsilon = hard_negative_mass, epsilon
        self.allocate(torch.zeros(0, dtype=torch.int64))

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments of the constructor from a configuration."""
        ssl = cfg.SSL
        return {
            "dim": cfg.MODEL.REID_HEAD.EMBEDDING_DIM,
            "multi_scale": ssl.EXEMPLAR.ENABLED,
            "new_weight": ssl.MEMORY.LAMBDA,
            "renormalize": ssl.MEMORY.RENORMALIZE,
            "label_source": ssl.MEMORY.LABEL_SOURCE,
            "cluster_weight": ssl.CLUSTER_LOSS.WEIGHT,
            "temperature": ssl.CLUSTER_LOSS.TEMPERATURE,
            "hard_negative_mass": ssl.CLUSTER_LOSS.HARD_NEGATIVE_MASS,
            "epsilon": ssl.CLUSTER_LOSS.EPSILON,
        }

    # ------------------------------------------------------------------ banks and labels

    def allocate(self, image_index: Tensor, identities: Tensor | None = None) -> None:
        """Makes empty banks; every row starts as a cluster of its own. See `ReIDObjective.allocate`.

        Raises:
            ValueError: identities are given, which no weakly supervised objective may see.
        """
        if identities is not None:
            raise ValueError(f"{type(self).__name__} is weakly supervised: it must not be given identities")
        device = self.image_index.device if hasattr(self, "image_index") else image_index.device
        self.size = len(image_index)
        self.instance_bank = MemoryBank(self.size, self.dim).to(device)
        self.multi_scale_bank = MemoryBank(self.size, self.dim).to(device) if self.multi_scale else None
        self.register_buffer("image_index", image_index.to(device), persistent=False)
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
        self.pending = (
            batch.instance_index,
            batch.persons.detach(),
            None if multi_scale is None else multi_scale.detach(),
        )
        return multi_scale

    def _remember(self, instance_index: Tensor, instances: Tensor, multi_scale: Tensor | None) -> None:
        self.instance_bank.update(instance_index, instances, self.new_weight, self.renormalize)
        if self.multi_scale_bank is not None:
            self.multi_scale_bank.update(instance_index, multi_scale, self.new_weight, self.renormalize)

    # ------------------------------------------------------------------ losses

    def _cluster_losses(self, batch: TrainingEmbeddings, multi_scale: Tensor | None) -> dict[str, Tensor]:
        """L_cluster of the positive RoIs against M_I and of f^h against M_M; {} at weight 0."""
        if not self.cluster_weight:
            return {}
        common = (self.temperature, self.hard_negative_mass, self.epsilon)
        losses = {
            "loss_cluster_instance": cluster_contrastive_loss(
                batch.rois, self.instance_bank.features, self.cluster_labels, batch.roi_instance_index, *common
            )
        }
        if multi_scale is not None:
            losses["loss_cluster_multi_scale"] = cluster_contrastive_loss(
                multi_scale, self.multi_scale_bank.features, self.cluster_labels, batch.instance_index, *common
            )
        return {name: self.cluster_weight * value for name, value in losses.items()}
