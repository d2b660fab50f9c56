"""What every re-id objective has in common, and the registry from which MODEL.OBJECTIVE.NAME picks one."""

from __future__ import annotations

from abc import ABCMeta, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.registry import Registry
from torch import Tensor, nn

from ..errors import ConfigError
from .one_head import TrainingEmbeddings

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
        size: N, number of annotated persons of the training set; 0 before `allocate`.
    """

    needs_identities: ClassVar[bool] = False
    exemplars: ClassVar[tuple[bool, ...]] = (False,)

    def __init__(self) -> None:
        super().__init__()
        self.pending: tuple[Tensor | None, ...] | None = None
        self.size = 0

    @abstractmethod
    def allocate(self, image_ids: Tensor, identities: Tensor | None = None) -> None:
        """Makes an empty memory.

        Args:
            image_ids: (N,) int64, equal for the persons of one image.
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
