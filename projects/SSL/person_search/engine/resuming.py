"""Settings of a resumed training that have changed since its checkpoint: which count, and which are refused."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.solver.lr_scheduler import LRMultiplier

from ..errors import CheckpointError

logger = logging.getLogger(__name__)

_START = "it has done its work before the first iteration"
_REFUSED: Mapping[str, str] = {
    "SOLVER.IMS_PER_BATCH": "epochs, and the frames that are still to come, are counted in batches of that size",
    "SOLVER.OPTIMIZER": "the state of the one does not fit the other",
    "SOLVER.AMP.ENABLED": "the state of the optimizer belongs to the one precision",
    "SEED": "it settles which frames are still to come",
    "MODEL.OBJECTIVE.NAME": "what it remembers belongs to it",
    "MODEL.BACKBONE.FREEZE_AT": "the optimizer's state belongs to the weights that were trained",
    "SSL.CLUSTERING.INDEPENDENCE_QUANTILE": "the threshold is frozen since the first clustering",
    "SSL.MEMORY.CALIBRATION_FRAMES": _START,
}
# Where a run writes and reads, and how fast: of no effect on what is learnt.
_UNMENTIONED = ("MODEL.WEIGHTS", "MODEL.DEVICE", "OUTPUT_DIR", "VERSION", "DATALOADER.")


def check_resumed_config(cfg: CfgNode, text: str | None) -> None:
    """Compares the config of a resumed training with that of its checkpoint, and says which keys have changed.

    Args:
        cfg: config of now, its schedule written in iterations.
        text: config of the checkpoint as YAML text; None: an old checkpoint, which carries none.

    Raises:
        CheckpointError: a key has changed that cannot be applied any more.
    """
    before = _parse(text)
    changed = {
        key: (before[key], value) for key, value in flatten(cfg).items() if key in before and before[key] != value
    }
    refused = [key for key in changed if key in _REFUSED]
    if refused:
        key = refused[0]
        raise CheckpointError(
            f"{key} is {_shown(changed[key][1])}, but the training began with {_shown(changed[key][0])} and cannot "
            f"change it: {_REFUSED[key]}. Set it back, or start anew in another OUTPUT_DIR"
        )
    applied = [
        f"{key} {_shown(old)} -> {_shown(new)}"
        for key, (old, new) in changed.items()
        if not key.startswith(_UNMENTIONED)
    ]
    if "MODEL.WEIGHTS" in changed:
        logger.warning("MODEL.WEIGHTS is not read: a resumed training goes on from its own weights")
    if applied:
        logger.warning("Resuming with changed settings, which count from now on: %s", "; ".join(applied))


def _parse(text: str | None) -> dict[str, Any]:
    """Dotted key -> value of a config as text; {} where it cannot be read (a checkpoint does not fail for that)."""
    try:
        content = yaml.safe_load(text or "")
    except yaml.YAMLError:
        return {}
    return flatten(content) if isinstance(content, Mapping) else {}


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted key -> value of a config; tuples are lists, as YAML has them."""
    flat: dict[str, Any] = {}
    for name, value in node.items():
        if isinstance(value, Mapping) and (isinstance(value, CfgNode) or value):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = _listed(value)
    return flat


def _listed(value: Any) -> Any:
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class OptimizerSettings:
    """Learning rates, decays and the like of an optimizer as its config describes them.

    A checkpoint of an optimizer brings the settings of the past with it; `apply` puts those of the config back.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        """Remembers the settings of a fresh optimizer, before a scheduler has changed its rates."""
        self._groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]

    def apply(self, optimizer: torch.optim.Optimizer, scheduler: LRMultiplier) -> None:
        """Sets what was remembered, the learning rates as the scheduler has them at its present iteration."""
        scheduler.base_lrs = [settings["lr"] for settings in self._groups]
        rates = scheduler.get_lr()
        for group, settings, rate in zip(optimizer.param_groups, self._groups, rates, strict=True):
            group.update(settings, initial_lr=settings["lr"], lr=rate)
        scheduler._last_lr = list(rates)
