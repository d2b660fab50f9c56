"""Online instance matching (Xiao et al. 2017): re-id against a table of known persons and a queue of unknown ones."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from torch import Tensor

from ...values import check_values
from ..heads import TrainingEmbeddings
from .base import REID_OBJECTIVE_REGISTRY, ReIDObjective


def online_matching_loss(features: Tensor, targets: Tensor, table: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of the similarities to all identities and all queued persons without one (OIM, Eq. 1-4).

    Args:
        features: (R, d) unit features.
        targets: (R,) int64, row of the table, -1 for a person without identity, who has no loss.
        table: (L, d), a unit feature for each identity; zero for those not seen yet, which count all the same.
        queue: (Q, d) unit features of persons without identity, zero where still empty.
        temperature: divisor of the similarities.

    Returns:
        A scalar, the mean over the features with an identity; 0 without any. No gradient flows into table and queue.
    """
    known = targets >= 0
    if not known.any():
        return features.sum() * 0.0
    logits = features[known].float() @ torch.cat([table, queue]).detach().float().T / temperature
    return F.cross_entropy(logits, targets[known])


def update_table(table: Tensor, rows: Tensor, features: Tensor, momentum: float) -> None:
    """Moves rows towards features one after another: row = normalised(momentum * row + (1 - momentum) * feature).

    Args:
        table: (L, d), changed in place.
        rows: (R,) int64; a row named several times moves several times, in their order.
        features: (R, d).
        momentum: weight of the OLD row.
    """
    # The k-th features of all rows move them together, since rows do not depend on each other.
    left = torch.arange(len(rows), device=rows.device)
    while len(left):
        _, inverse = torch.unique(rows[left], return_inverse=True)
        first = torch.full((int(inverse.max()) + 1,), len(rows), device=rows.device)
        first = first.scatter_reduce(0, inverse, left, reduce="amin")
        moved = momentum * table[rows[first]] + (1 - momentum) * features[first].to(table)
        table[rows[first]] = F.normalize(moved, dim=1)
        left = left[~torch.isin(left, first)]


def push_queue(queue: Tensor, position: Tensor, features: Tensor) -> None:
    """Writes features over the oldest ones of a circular queue.

    Args:
        queue: (Q, d), changed in place.
        position: int64 scalar, the slot that is written next; changed in place.
        features: (R, d); of more than Q only the last Q stay.
    """
    size = len(queue)
    if size == 0:
        return
    slots = (position + torch.arange(len(features), device=queue.device)) % size
    queue[slots[-size:]] = features[-size:].to(queue)
    position.copy_((position + len(features)) % size)


@REID_OBJECTIVE_REGISTRY.register()
class OIMObjective(ReIDObjective):
    """OIM: a lookup table with a row for each labelled identity, a circular queue of features of unlabelled persons.

    Every positive RoI is classified against both, and then moves its identity's row or enters the queue. Table, queue
    and the queue's position are buffers, so that a checkpoint holds them. NAE and SeqNet train with the same.
    """

    needs_identities = True
    reads_persons = False
    lookup_table: Tensor
    queue: Tensor
    queue_position: Tensor
    row_identity: Tensor

    @configurable
    def __init__(self, *, dim: int, queue_size: int, momentum: float, temperature: float, weight: float) -> None:
        """
        Args:
            dim: d of the features.
            queue_size: Q, 0 for no queue.
            momentum: weight of the OLD row of the table in an update.
            temperature: divisor of the similarities.
            weight: of the loss.
        """
        super().__init__()
        self.dim, self.queue_size = dim, queue_size
        self.momentum, self.temperature, self.weight = momentum, temperature, weight
        empty = torch.zeros(0, dtype=torch.int64)
        self.allocate(empty, empty)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Arguments of the constructor from a configuration.

        Raises:
            ConfigError: a key of OIM cannot work.
        """
        oim = cfg.OIM
        check_values(cfg, ["OIM.QUEUE_SIZE", "OIM.TEMPERATURE"])
        return {
            "dim": cfg.MODEL.REID_HEAD.EMBEDDING_DIM,
            "queue_size": oim.QUEUE_SIZE,
            "momentum": oim.MOMENTUM,
            "temperature": oim.TEMPERATURE,
            "weight": oim.WEIGHT,
        }

    def allocate(self, image_index: Tensor, identities: Tensor | None = None) -> None:
        """Makes an empty table and queue; see `ReIDObjective.allocate`.

        Raises:
            ValueError: there are no identities.
        """
        if identities is None:
            raise ValueError("OIMObjective is supervised: it needs the identities of the persons")
        device = self.lookup_table.device if hasattr(self, "lookup_table") else image_index.device
        self.size = len(identities)
        count = int(identities.max()) + 1 if self.size else 0
        self.register_buffer("row_identity", identities.to(device), persistent=False)
        self.register_buffer("lookup_table", torch.zeros(count, self.dim, device=device))
        self.register_buffer("queue", torch.zeros(self.queue_size, self.dim, device=device))
        self.register_buffer("queue_position", torch.zeros((), dtype=torch.int64, device=device))

    def _losses(self, batch: TrainingEmbeddings) -> dict[str, Tensor]:
        targets = self.row_identity[batch.roi_instance_index]
        self.pending = (targets, batch.rois.detach())
        loss = online_matching_loss(batch.rois, targets, self.lookup_table, self.queue, self.temperature)
        return {"loss_oim": self.weight * loss}

    def _remember(self, targets: Tensor, features: Tensor) -> None:
        known = targets >= 0
        update_table(self.lookup_table, targets[known], features[known], self.momentum)
        push_queue(self.queue, self.queue_position, features[~known])
