"""OIM (Xiao et al. 2017): online instance matching against a lookup table of identities and a queue of unlabelled
persons."""

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
    """Cross-entropy over the similarities to all identities and all queued unlabelled persons (OIM, Eq. 1-4).

    Args:
        features: (R, d) unit features.
        targets: (R,) int64, row of the table; -1 for an unlabelled person, which has no loss.
        table: (L, d) unit feature of each identity; identities not seen yet are zero, and count all the same.
        queue: (Q, d) unit features of unlabelled persons; zero where still empty.
        temperature: divisor of the similarities.

    Returns:
        A scalar, the mean over the labelled features; 0 without any. No gradient flows into table and queue.
    """
    known = targets >= 0
    if not known.any():
        return features.sum() * 0.0
    logits = features[known].float() @ torch.cat([table, queue]).detach().float().T / temperature
    return F.cross_entropy(logits, targets[known])


def update_table(table: Tensor, rows: Tensor, features: Tensor, momentum: float) -> None:
    """Updates rows one feature at a time: row = normalize(momentum * row + (1 - momentum) * feature).

    Args:
        table: (L, d), updated in place.
        rows: (R,) int64; a row that occurs several times is updated several times, in order.
        features: (R, d).
        momentum: weight of the OLD row.
    """
    # Rows are independent, so the k-th features of all rows are applied together.
    left = torch.arange(len(rows), device=rows.device)
    while len(left):
        _, inverse = torch.unique(rows[left], return_inverse=True)
        first = torch.full((int(inverse.max()) + 1,), len(rows), device=rows.device)
        first = first.scatter_reduce(0, inverse, left, reduce="amin")
        moved = momentum * table[rows[first]] + (1 - momentum) * features[first].to(table)
        table[rows[first]] = F.normalize(moved, dim=1)
        left = left[~torch.isin(left, first)]


def push_queue(queue: Tensor, position: Tensor, features: Tensor) -> None:
    """Pushes features onto a circular queue, replacing the oldest.

    Args:
        queue: (Q, d), updated in place.
        position: int64 scalar, next slot to write; updated in place.
        features: (R, d); if R > Q, only the last Q are kept.
    """
    size = len(queue)
    if size == 0:
        return
    slots = (position + torch.arange(len(features), device=queue.device)) % size
    queue[slots[-size:]] = features[-size:].to(queue)
    position.copy_((position + len(features)) % size)


@REID_OBJECTIVE_REGISTRY.register()
class OIMObjective(ReIDObjective):
    """OIM objective: a lookup table with a row per identity, and a circular queue of unlabelled persons.

    Every positive RoI is classified against both, then updates the row of its identity or enters the queue. Table,
    queue and queue position are buffers, so checkpoints include them. NAE and SeqNet use the same objective.
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
            queue_size: Q; 0 for no queue.
            momentum: weight of the OLD row in a table update.
            temperature: divisor of the similarities.
            weight: weight of the loss.
        """
        super().__init__()
        self.dim, self.queue_size = dim, queue_size
        self.momentum, self.temperature, self.weight = momentum, temperature, weight
        empty = torch.zeros(0, dtype=torch.int64)
        self.allocate(empty, empty)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Constructor arguments from a config.

        Raises:
            ConfigError: OIM.QUEUE_SIZE or OIM.TEMPERATURE is out of range.
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
        """Allocates an empty table and queue; see `ReIDObjective.allocate`.

        Raises:
            ValueError: `identities` is None.
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
        self.pending = {"targets": targets, "rois": batch.rois.detach()}
        loss = online_matching_loss(batch.rois, targets, self.lookup_table, self.queue, self.temperature)
        return {"loss_oim": self.weight * loss}

    def _remember(self, pending: dict[str, Tensor]) -> None:
        targets, features = pending["targets"], pending["rois"]
        known = targets >= 0
        update_table(self.lookup_table, targets[known], features[known], self.momentum)
        push_queue(self.queue, self.queue_position, features[~known])
