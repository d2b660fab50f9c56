"""Re-id objectives: registry, base classes, and memory banks with cluster labels."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, cast

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
    """Memory bank of N unit features, a buffer that checkpoints include. Rows not seen yet are zero."""

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
        """Overwrites rows with features.

        Args:
            instance_index: (q,) int64, the rows.
            features: (q, d), normalized here.
        """
        self.features[instance_index] = F.normalize(features.to(self.features), dim=1)

    @torch.no_grad()
    def update(self, instance_index: Tensor, features: Tensor, new_weight: float, renormalize: bool = True) -> None:
        """Updates rows with features: lambda * new + (1 - lambda) * old (Eq. 5).

        A row that occurs more than once (the same frame twice in a batch) is updated once, with the mean of its
        features, so the result depends neither on their order nor on the process they come from.

        Args:
            instance_index: (q,) int64, the rows.
            features: (q, d).
            new_weight: lambda, the weight of the NEW feature, in [0, 1].
            renormalize: whether to scale the updated rows to unit length.
        """
        unique, inverse = torch.unique(instance_index, return_inverse=True)
        sums = self.features.new_zeros(len(unique), self.features.shape[1])
        sums.index_add_(0, inverse, features.to(self.features))
        mean = sums / torch.bincount(inverse)[:, None]
        new = new_weight * mean + (1 - new_weight) * self.features[unique]
        self.features[unique] = F.normalize(new, dim=1) if renormalize else new


REID_OBJECTIVE_REGISTRY = Registry("REID_OBJECTIVE")
REID_OBJECTIVE_REGISTRY.__doc__ = """
Registry of re-id objectives: subclasses of `ReIDObjective`, constructed from a config.
"""


class ReIDObjective(nn.Module, metaclass=ABCMeta):
    """Re-id losses, with a memory of the persons that outlives a batch.

    `allocate` sizes the memory before training or before loading a checkpoint; without it, only the detector is trained
    and inference works. Subclasses compute their losses in `_losses` and store the batch's contribution to the memory
    in `pending`. After the iteration, `apply_pending` gathers `pending` from all processes, which keeps the memories
    equal, and passes it to `_remember`.

    Attributes:
        needs_identities: whether the objective is supervised. Only supervised ones are given identities.
        exemplars: allowed values of SSL.EXEMPLAR.ENABLED.
        reads_persons: whether features of the annotated boxes are used; they are not computed otherwise.
        pending: tensors by name, to be gathered along rows; None if there is nothing to remember.
        size: N, number of annotated persons in the training set; 0 before `allocate`.
    """

    needs_identities: ClassVar[bool] = False
    exemplars: ClassVar[tuple[bool, ...]] = (False,)
    reads_persons: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.pending: dict[str, Tensor] | None = None
        self.size = 0

    @abstractmethod
    def allocate(self, image_index: Tensor, identities: Tensor | None = None) -> None:
        """Allocates an empty memory.

        Args:
            image_index: (N,) int64, equal for the persons of one image.
            identities: (N,) int64, identity of each person, numbered from 0 without gaps, -1 if unknown; None for an
                objective without `needs_identities`.
        """

    def forward(self, batch: TrainingEmbeddings) -> dict[str, Tensor]:
        """Losses of a batch. Its contribution to the memory is kept until `apply_pending`.

        Args:
            batch: embeddings of the RoIs, the persons and their exemplars.

        Returns:
            scalars by name, weighted; {} before `allocate`.
        """
        if self.size == 0:
            return {}
        # No mixed precision: similarities are compared with thresholds, and temperatures amplify their rounding.
        with torch.autocast(batch.rois.device.type, enabled=False):
            return self._losses(batch)

    @abstractmethod
    def _losses(self, batch: TrainingEmbeddings) -> dict[str, Tensor]:
        """Weighted losses by name. Sets `pending`."""

    @abstractmethod
    def _remember(self, pending: dict[str, Tensor]) -> None:
        """Updates the memory with the `pending` of all processes, concatenated along rows in order of rank."""

    @torch.no_grad()
    def apply_pending(self) -> None:
        """Updates the memory with the last batch of all processes."""
        if self.pending is None:
            return
        pending, self.pending = self.pending, None
        self._remember(pending if comm.get_world_size() == 1 else _gathered(pending))


def _gathered(pending: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of all processes, concatenated along rows, on this process's devices."""
    everywhere = comm.all_gather({name: tensor.cpu() for name, tensor in pending.items()})
    return {name: torch.cat([part[name] for part in everywhere]).to(own.device) for name, own in pending.items()}


def given(features: Tensor | None, name: str) -> Tensor:
    """Features of a batch that an objective cannot do without.

    Raises:
        ValueError: they are None.
    """
    if features is None:
        raise ValueError(f"the batch has no features of {name}, which the objective needs")
    return features


def objective_class(cfg: CfgNode) -> type[ReIDObjective]:
    """Class named by MODEL.OBJECTIVE.NAME.

    Raises:
        ConfigError: the name is not registered; the message lists the registered ones.
    """
    name = cfg.MODEL.OBJECTIVE.NAME
    if name not in REID_OBJECTIVE_REGISTRY:
        known = ", ".join(sorted(key for key, _ in REID_OBJECTIVE_REGISTRY))
        raise ConfigError(f"MODEL.OBJECTIVE.NAME is {name!r}, expected one of {known}")
    return REID_OBJECTIVE_REGISTRY.get(name)


def build_objective(cfg: CfgNode) -> ReIDObjective:
    """Objective named by MODEL.OBJECTIVE.NAME, constructed from the config."""
    # `@configurable` lets the constructor of each subclass take a config, which its signature does not tell.
    build = cast(Callable[[CfgNode], ReIDObjective], objective_class(cfg))
    return build(cfg)


class BankObjective(ReIDObjective):
    """Memory banks M_I and M_M with their update (paper Eq. 5), cluster labels, and the cluster loss.

    Hooks fill the banks before the first iteration and set `cluster_labels` before each epoch. Subclasses call `_keep`
    and `_cluster_losses` in `_losses`.

    Attributes:
        instance_bank: M_I, features of the main branch.
        multi_scale_bank: M_M, features of the exemplars averaged over scales; None without exemplars.
        image_index: (N,) int64, equal for the persons of one image.
        cluster_labels: (N,) int64, cluster of each bank row.
    """

    instance_bank: MemoryBank
    multi_scale_bank: MemoryBank | None
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
        epsilon: float,
    ) -> None:
        """
        Args:
            dim: d of the features.
            multi_scale: whether there are exemplars, and with them the bank M_M.
            new_weight, renormalize: bank update, see `MemoryBank.update`.
            label_source: "mean" (Eq. 6) or "instance".
            cluster_weight: weight of the cluster loss.
            temperature, hard_negative_mass, epsilon: see `cluster_contrastive_loss`.
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
        """Constructor arguments from a config."""
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
        """Allocates empty banks, each row a cluster of its own. See `ReIDObjective.allocate`.

        Raises:
            ValueError: identities are given, which a weakly supervised objective must not see.
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
        """Features M (N, d) that pseudo labels are predicted from (Eq. 6); rows of unit length, zero if never seen."""
        multi_scale = None if self.multi_scale_bank is None else self.multi_scale_bank.features
        return self.source_features(self.instance_bank.features, multi_scale)

    def source_features(self, instances: Tensor, multi_scale: Tensor | None) -> Tensor:
        """Features M (N, d) of Eq. 6 from features (N, d) of main branch and exemplars; see `label_features`."""
        if multi_scale is not None and self.label_source == "mean":
            instances = instances + multi_scale
        return F.normalize(instances, dim=1)

    def _keep(self, batch: TrainingEmbeddings) -> Tensor | None:
        """Keeps the persons' features for the bank update; returns f^h (P, d) of the exemplars, if any."""
        multi_scale = None if batch.exemplars is None else F.normalize(batch.exemplars.mean(dim=1), dim=1)
        instances = given(batch.persons, "annotated persons")
        self.pending = {"instance_index": batch.instance_index, "instances": instances.detach()}
        if multi_scale is not None:
            self.pending["multi_scale"] = multi_scale.detach()
        return multi_scale

    def _remember(self, pending: dict[str, Tensor]) -> None:
        rows = pending["instance_index"]
        self.instance_bank.update(rows, pending["instances"], self.new_weight, self.renormalize)
        if self.multi_scale_bank is not None:
            self.multi_scale_bank.update(rows, pending["multi_scale"], self.new_weight, self.renormalize)

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
        if multi_scale is not None and self.multi_scale_bank is not None:
            losses["loss_cluster_multi_scale"] = cluster_contrastive_loss(
                multi_scale, self.multi_scale_bank.features, self.cluster_labels, batch.instance_index, *common
            )
        return {name: self.cluster_weight * value for name, value in losses.items()}


class MultiLabelObjective(BankObjective):
    """Bank objective that predicts multi-labels. `ThresholdSchedule` sets its threshold in every iteration."""

    @abstractmethod
    def set_threshold(self, threshold: float) -> None:
        """Sets the threshold of the multi-labels, t(e) of Eq. 9."""

    @abstractmethod
    def predict_labels(self, instance_index: Tensor) -> Tensor:
        """Multi-labels (q, N) bool of bank rows (q,) int64."""
